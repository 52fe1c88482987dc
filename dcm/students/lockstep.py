"""Student networks. A group of students trains in lockstep, as one module with a leading member axis M."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Self

import torch
from torch import Tensor, nn

from dcm.support.seeds import generator


class Students(nn.Module):
    """M students of one architecture: ``forward(x (M, B, *shape), t (M, B), condition (M, B))`` -> x's shape.

    ``members`` picks some of them (then x has as many rows). Members share nothing: the sum of their losses has
    for each the gradient of its own.
    """

    size: int  # M

    @property
    def capturable(self) -> bool:
        """Whether losses and gradients may be one CUDA graph: the same kernels on the same tensors every time."""
        return True

    @property
    def clips_on_device(self) -> bool:
        """Whether :meth:`clip_gradients` may be part of one."""
        return True

    def parts(self, trained: Sequence[slice]) -> list[slice]:
        """Of the members that train, those whose loss is computed and walked back together."""
        return [*trained]

    def microbatches(self, batch: int) -> list[slice]:
        """Of a `batch`, the samples whose loss is computed and walked back together: all."""
        return [slice(batch)]

    def follow(self, who: slice, whom: slice, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Give the members `who` the weights of `whom`, and in an `optimizer` their state."""
        raise NotImplementedError

    def backward(self, loss: Tensor, part: slice) -> None:
        """Add the gradients of `loss` (members of the part,) to the parameters."""
        loss.sum().backward()

    def clip_gradients(self, max_norm: float) -> None:
        """Clip each member's gradient norm to `max_norm`, as if it trained alone."""
        raise NotImplementedError

    def trained(self) -> Self:
        """These students, to be called alone from now on."""
        return self.eval().requires_grad_(False)


class MLPStudents(Students):
    """M multilayer perceptrons for vectors of length D, evaluated as batched matrix products.

    Inputs: x, Fourier features of t / T, a learned embedding of the class. Members with equal seed start equal.
    """

    def __init__(self, seeds: Sequence[int], dim: int, num_classes: int, T: int, width: int = 128, depth: int = 3):
        super().__init__()
        self.size, self.num_classes, self.T, self.width, self.frequencies = len(seeds), num_classes, T, width, 6
        sizes = [dim + 2 * self.frequencies + num_classes] + depth * [width] + [dim]
        # One member's weights depend on its seed alone, so runs that differ in one setting are paired.
        layers = list(zip(sizes[:-1], sizes[1:]))
        generators = [generator("cpu", seed, "student") for seed in seeds]
        drawn = [[torch.rand(i, o, generator=g) * 2 - 1 for i, o in layers] for g in generators]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for k, (fan_in, fan_out) in enumerate(layers):
            gain = 0.0 if k == len(layers) - 1 else math.sqrt(6 / fan_in)  # He; the last layer starts at zero
            self.weights.append(torch.stack([d[k] for d in drawn]) * gain)
            self.biases.append(torch.zeros(self.size, 1, fan_out))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, members: slice = slice(None)) -> Tensor:
        """Raw network output, (M, B, D)."""
        octaves = 2.0 ** torch.arange(self.frequencies, device=x.device, dtype=x.dtype)
        phase = (math.pi / 2 / self.T) * t.to(x.dtype)[..., None] * octaves
        onehot = nn.functional.one_hot(condition, self.num_classes).to(x.dtype)
        h = torch.cat([x, phase.sin(), phase.cos(), onehot], -1)
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            h = torch.baddbmm(bias[members], h, weight[members])
            if k < len(self.weights) - 1:
                h = nn.functional.silu(h)
        return h

    def follow(self, who: slice, whom: slice, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Copy rows."""
        for p in self.parameters():
            state = optimizer.state[p].values() if optimizer else ()
            for table in (p.data, *(v for v in state if v.shape == p.shape)):
                table[who] = table[whom]

    def clip_gradients(self, max_norm: float) -> None:
        """Clip per member."""
        grads = [p.grad for p in self.parameters()]
        norm = sum(g.square().flatten(1).sum(1) for g in grads).sqrt()
        factor = (max_norm / (norm + 1e-6)).clamp(max=1)
        for g in grads:
            g.mul_(factor.reshape(-1, *(1,) * (g.ndim - 1)))


@torch.no_grad()
def follow(who: nn.Module, whom: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Give the module `who` the weights of `whom`, another of its kind, and in an `optimizer` their state."""
    for own, other in zip(who.parameters(), whom.parameters()):
        if other.requires_grad:
            own.copy_(other)
            if optimizer:
                state = optimizer.state[other]
                optimizer.state[own] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}


@cache
def _streams(count: int) -> list[torch.cuda.Stream]:
    """CUDA streams beside the current one; the same for all calls, which then share memory."""
    return [torch.cuda.Stream() for _ in range(count)]


class ModuleStudents(Students):
    """M `networks` of any kind, called as ``network(x (B, *shape), t (B,), condition (B,))`` one after the other.

    Where a CUDA graph is captured they run side by side.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        self.size, self.networks = len(networks), nn.ModuleList(networks)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, members: slice = slice(None)) -> Tensor:
        """Raw network output, (M, B, *shape)."""
        rows = list(zip(self.networks[members], x, t, condition))
        if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
            return torch.stack([network(*row) for network, *row in rows])
        # In a CUDA graph each network is a branch of its own: one small batch alone does not fill the device.
        home, out, streams = torch.cuda.current_stream(), [], _streams(len(rows))
        for stream, (network, *row) in zip(streams, rows):
            stream.wait_stream(home)
            with torch.cuda.stream(stream):
                out.append(network(*row))
        for stream in streams:
            home.wait_stream(stream)
        return torch.stack(out)

    def trained(self) -> Self:
        """As of :class:`Students`; adapters are added to the weights beneath them, which halves the time of a call."""
        for layer in self.modules():
            if hasattr(layer, "lora_A") and not layer.merged:
                layer.merge()
        return super().trained()

    def follow(self, who: slice, whom: slice, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Copy networks."""
        follow(self.networks[who], self.networks[whom], optimizer)

    def clip_gradients(self, max_norm: float) -> None:
        """Clip per member."""
        for net in self.networks:
            nn.utils.clip_grad_norm_(net.parameters(), max_norm)
