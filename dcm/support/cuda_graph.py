"""A function as one CUDA graph: its thousands of kernels then cost no time to launch."""

from collections.abc import Callable
from typing import Any

import torch


class Replay:
    """Calls a function that works on tensors which stay where they are: as it stands at first, then as one CUDA graph.

    What a graph returns is overwritten by its next call. Without `capture` the function is called as it stands, always.
    ``graph`` is None until there is one.
    """

    WARM_UP = 3  # calls until everything is compiled, and algorithms are chosen

    def __init__(self, capture: bool):
        self.capture, self.calls = capture, 0
        self.aside: Any = torch.cuda.Stream() if capture else None  # one, since what a stream has freed is kept for it
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, function: Callable[[], Any]) -> Any:
        """What `function`, always the same one, returns."""
        if not self.capture:
            return function()
        self.calls += 1
        if self.calls <= self.WARM_UP:  # on a stream of its own, as capturing asks for
            self.aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.aside):
                result = function()
            torch.cuda.current_stream().wait_stream(self.aside)
            return result
        if self.graph is None:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # Recorded, not run. Meanwhile other threads, NCCL's above all, may ask the device something.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.result = function()
            self.graph = graph
        self.graph.replay()
        return self.result
