import pytest
import torch
from tiny_unet import TINY

from dcm.consistency import ConsistencyFunction
from dcm.data.images import digits
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.teachers.unet import UNetTeacher

# Parts of the tests that each stay in one process (`pytest -n`), longest first, so that the processes end together.
# All else is parted by file: its tests share fixtures. The notebooks need each other's results, in their order.
PARTS = [
    "tests/workflow/test_smoke.py", "tests/workflow/test_slurm.py", "notebooks", "tests/studies/sdxl", "test_the_image_path",
    "tests/workflow/test_notebooks.py", "tests/parameters/test_any_input.py", "test_a_bad_config_is_refused_before_anything_runs",
]  # fmt: skip


def part(nodeid: str) -> str:
    file, _, test = nodeid.partition("::")
    name = test.partition("[")[0]
    folder = file.rpartition("/")[0]
    return "notebooks" if file.endswith(".ipynb") else next((p for p in (name, folder) if p in PARTS), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Parts(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return part(nodeid)

    config.option.loadscopereorder = False  # keep the order below
    return Parts(config, log)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: PARTS.index(part(item.nodeid)) if part(item.nodeid) in PARTS else len(PARTS))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def teacher():
    return GaussianMixtureTeacher.interleaved_ring()


@pytest.fixture(scope="session")
def f(teacher):
    return ConsistencyFunction(teacher.schedule)


@pytest.fixture(scope="module")
def data():
    """The digits."""
    return digits()


@pytest.fixture()
def unet():
    """A tiny UNet teacher with random weights."""
    torch.manual_seed(0)
    return UNetTeacher(TINY).eval().requires_grad_(False)
