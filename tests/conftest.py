import pytest
import torch

from dcm.consistency import ConsistencyFunction
from dcm.teachers.mixture import GaussianMixtureTeacher


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher():
    return GaussianMixtureTeacher.interleaved_ring()


@pytest.fixture(scope="session")
def f(teacher):
    return ConsistencyFunction(teacher.schedule)
