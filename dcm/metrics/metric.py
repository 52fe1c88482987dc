"""How a metric reads, and the ODE-solving error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How a quality metric reads."""

    label: str  # name with unit, for axes and tables
    lower_is_better: bool = True
    ratio: bool = False  # two models are compared by the ratio of their (positive) values, not by the difference
    judged: bool = True  # whether a verdict can rest on it; false where neither direction is better


def ode_error(x: Tensor, solution: Tensor) -> float:
    """Mean over elements of the squared difference between samples and ODE solutions from the same noise.

    Both (B, *shape), in the space where the teacher lives. Source: the paper's evaluation (mean squared error).
    """
    return float((x.double() - solution.double()).square().mean())
