"""Guidance, in terms of the protocol alone."""

import pytest
import torch

from dcm.schedule import NoiseSchedule
from dcm.teacher import Teacher, guided_noise


class Counting:
    """A teacher whose noise is x + 10 t + 1000 c, so that every part of its input can be read off."""

    shape, schedule = (2,), NoiseSchedule.from_betas([0.1, 0.2])

    def __init__(self):
        self.called = []

    def predict_noise(self, x, t, condition):
        self.called.append(len(x))
        return x + (10 * t + 1000 * condition)[:, None]

    def null_condition(self, condition):
        return torch.full_like(condition, 9)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5, torch.tensor([0.0, 1.0, 2.5])])
def test_guidance_goes_from_the_null_condition_through_the_condition(w):
    """Imagen's form: w = 0 is unconditional, w = 1 the condition alone."""
    teacher = Counting()
    assert isinstance(teacher, Teacher)
    x, t, c = torch.tensor([[0.5, -1.0], [0.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 2, 1]), torch.tensor([0, 3, 5])
    condition = 9 + torch.as_tensor(w) * (c - 9)  # the noise is linear in it
    torch.testing.assert_close(guided_noise(teacher, x, t, c, w), x + (10 * t + 1000 * condition)[:, None])
    unguided = not isinstance(w, torch.Tensor) and w == 1
    assert teacher.called == [3 if unguided else 6], "both halves in one call, and one half where w is 1"
