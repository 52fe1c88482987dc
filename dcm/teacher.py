"""The protocol that every teacher follows, and classifier-free guidance in terms of it.

Solvers, distillation, metrics and figures know nothing else of a teacher. docs/extend.md says how one is added.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dcm.schedule import NoiseSchedule, expand_to


@runtime_checkable
class Teacher(Protocol):
    """A diffusion model that predicts noise."""

    schedule: NoiseSchedule  # that it was trained on
    shape: tuple[int, ...]  # of one sample, without batch axes

    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps(x, t, c), the noise in x_t.

        Parameters
        ----------
        x : (*batch, *shape).
        t : (*batch), timesteps 1..T; fractional ones only where a solver has stages between them.
        condition : (*batch), what `null_condition` takes: class indices, say.

        Returns (*batch, *shape), in the dtype of `x`.
        """
        ...

    def null_condition(self, condition: Tensor) -> Tensor:
        """The unconditional counterpart of `condition`, of the same shape."""
        ...


def guided_noise(teacher: Teacher, x: Tensor, t: Tensor, condition: Tensor, guidance: float | Tensor) -> Tensor:
    """Classifier-free guidance in the Imagen form: eps_w = eps_null + w (eps_cond - eps_null).

    Parameters
    ----------
    x : (B, *shape).
    t : (B,), integer timesteps 1..T.
    condition : (B,).
    guidance : w, one number or (B,); the number 1 is unguided and costs one evaluation instead of two.

    Returns (B, *shape). Source: Saharia et al. 2022 (Imagen), eq. 2; the scale of Ho & Salimans 2022 is w - 1.
    """
    if hasattr(teacher, "guided_noise"):  # a teacher whose halves share work may do both at once
        return teacher.guided_noise(x, t, condition, guidance)
    if isinstance(guidance, (int, float)) and guidance == 1:
        return teacher.predict_noise(x, t, condition)
    return guide(teacher.predict_noise(*both_halves(teacher, x, t, condition)), guidance)


def both_halves(teacher: Teacher, x: Tensor, t: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs of one call for both halves of the guidance, (2 B, ...): with the condition, then with the null one."""
    return torch.cat([x, x]), torch.cat([t, t]), torch.cat([condition, teacher.null_condition(condition)])


def guide(both: Tensor, guidance: float | Tensor) -> Tensor:
    """eps_w (B, *shape) from `both` halves (2 B, *shape); see :func:`guided_noise`."""
    eps_cond, eps_null = both.chunk(2)
    w = guidance if isinstance(guidance, (int, float)) else expand_to(guidance.to(both.dtype), eps_null)
    return eps_null + w * (eps_cond - eps_null)
