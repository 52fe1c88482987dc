"""How a metric reads, and the ODE-solving error."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How a quality metric reads.

    Attributes
    ----------
    label : name with unit, for axes and tables. lower_is_better : its direction.
    ratio : compare two models by the ratio of their values (positive metrics) rather than by the difference.
    judged : whether a verdict can rest on it; false where neither direction is better.
    """

    label: str
    lower_is_better: bool = True
    ratio: bool = False
    judged: bool = True


def ode_error(x: Tensor, solution: Tensor) -> float:
    """Mean over elements of the squared difference between samples and ODE solutions from the same noise.

    Both (B, *shape), in the space where the teacher lives. Source: the paper's evaluation (mean squared error).
    """
    return float((x.double() - solution.double()).square().mean())
