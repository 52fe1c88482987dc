"""How a metric reads, and the ODE-solving error."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """How a quality metric reads."""

    label: str  # name with unit, for axes and tables
    lower_is_better: bool = True
    ratio: bool = False  # two models are compared by the ratio of their (positive) values, not by the difference
    judged: bool = True  # whether a verdict can rest on it; false where neither direction is better


# By study, by encoder: the columns of the Frechet distances to the teacher's samples and to held-out images, and of the
# paired error, the ODE error in the encoder's space. The first is primary; Inception's and SDXL's need weights, the
# last two of SDXL's suit small pictures, and diffusers' self-supervised one measures CIFAR-10 alone.
ENCODERS: dict[str, dict[str, tuple[str, str, str]]] = {
    "gmm": {"x": ("frechet", "", "paired")},
    "digits": {
        "classifier": ("fd_teacher", "fd_real", "paired"),
        "pixel": ("fd_pixels", "fd_pixels_real", "paired_pixels"),
        "self-supervised": ("fd_self", "fd_self_real", "paired_self"),
    },
    "cifar10": {
        "EfficientNet-Lite0": ("fd_teacher", "fd_real", "paired"),
        "classifier": ("fd_classifier", "fd_classifier_real", "paired_classifier"),
        "self-supervised": ("fd_self", "fd_self_real", "paired_self"),
        "Inception": ("fid_teacher", "fid_real", "paired_inception"),
    },
    "diffusers": {
        "EfficientNet-Lite0": ("fd_teacher", "fd_real", "paired"),
        "pixel": ("fd_pixels", "fd_pixels_real", "paired_pixels"),
        "self-supervised": ("fd_self", "fd_self_real", "paired_self"),
        "Inception": ("fid_teacher", "fid_real", "paired_inception"),
    },
    "sdxl": {
        "EfficientNet-Lite0": ("fd_teacher", "", "paired"),
        "Inception": ("fid_teacher", "", "paired_inception"),
        "DINOv2": ("fd_dino", "", "paired_dino"),
        "classifier": ("fd_classifier", "", "paired_classifier"),
        "self-supervised": ("fd_self", "", "paired_self"),
    },
}


def ode_error(x: Tensor, solution: Tensor) -> float:
    """Mean over elements of the squared difference between samples and ODE solutions from the same noise.

    Both (B, *shape), in the space where the teacher lives. Source: the paper's evaluation (mean squared error).
    """
    return float((x.double() - solution.double()).square().mean())
