"""Seeds. Every draw depends on named integers alone: never on batch size, order, or what ran before."""

import numpy as np
import torch
from torch import Tensor

# Streams of random numbers that must not overlap, by name.
STREAMS = ("data", "noise", "index", "student", "evaluation", "renoise", "teacher", "reference", "features", "encode")


def generator(device: str | torch.device, seed: int, stream: str, *extra: int) -> torch.Generator:
    """A torch generator on `device` for the named stream of `seed`; `extra` is the update number, say."""
    state = np.random.SeedSequence([seed, STREAMS.index(stream), *extra]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0] >> np.uint64(1)))


def sample_noise(seed: int, stream: str, indices: range | list[int], shape: tuple[int, ...], step: int = 0) -> Tensor:
    """Standard normal noise (len(indices), *shape) in float32, a stream of its own for each sample.

    Row i depends on (seed, stream, step, indices[i]) alone, so batching changes nothing. Philox is counter-based
    (Salmon et al. 2011): one key, and a far-apart counter for each sample.
    """
    key = np.random.SeedSequence([seed, STREAMS.index(stream), step]).generate_state(2, np.uint64)
    out: np.ndarray = np.empty((len(indices), *shape), dtype=np.float32)
    for row, i in zip(out, indices):
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, i])).standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(out)
