"""A student of less capacity that still starts as the teacher: low-rank changes of frozen weights (LoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """W + B A for a weight W (out, ...) flattened to (out, in), with A (rank, in) and B (out, rank), B = 0 at first.

    Source: Hu et al. 2021, section 4.1, with alpha equal to the rank.
    """

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        out, inputs = weight.flatten(1).shape
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, in the shape of `weight`."""
        return weight + (self.B @ self.A).view_as(weight)


def adapt(network: nn.Module, rank: int) -> None:
    """Freeze `network` and let every linear and convolution layer change by a product of the given rank, in place.

    The product's first factor is drawn from torch's global generator.
    """
    network.requires_grad_(False)
    for layer in list(network.modules()):
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
