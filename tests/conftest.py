import pytest
import torch

from dcm.consistency import ConsistencyFunction
from dcm.teachers.mixture import GaussianMixtureTeacher

# What takes longest goes first, so that processes (`make test`) end together.
FIRST = ["test_smoke.py", "notebooks", "test_sdxl.py", "smoke, images", "test_notebooks.py", "test_any_input.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Under pytest-xdist a file's tests share a process, for their fixtures; so do all notebooks, for their order."""
    if not hasattr(config, "workerinput"):
        return
    group = {}
    for item in items:
        own = item.get_closest_marker("xdist_group")
        group[item] = own.args[0] if own else "notebooks" if item.path.suffix == ".ipynb" else item.path.name
        if not own:
            item.add_marker(pytest.mark.xdist_group(group[item]))
    items.sort(key=lambda item: FIRST.index(group[item]) if group[item] in FIRST else len(FIRST))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher():
    return GaussianMixtureTeacher.interleaved_ring()


@pytest.fixture(scope="session")
def f(teacher):
    return ConsistencyFunction(teacher.schedule)
