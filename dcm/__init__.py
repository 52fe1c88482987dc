"""Direct Consistency Models: a reproducible study of arXiv 2411.08954, and a small library to distil your own.

The map, from the bottom up: a module imports only what stands above it here, and its own folder
(``python tests/test_structure.py`` checks it). The idea is the seven files at the top, in reading order:

    support/                 files, seeds, errors, device, processes (skip it at first)
    schedule.py              alpha, sigma, and the grid of solver times
    teacher.py               what a teacher must offer; guidance
    further_solvers.py       EDM's Heun and DPM-Solver++, which the paper does not use (skip it too)
    solvers.py               DDIM, Euler, Heun, and `solve` with any of them
    consistency.py           the consistency function f(x, t), and few-step sampling
    horizon.py               the objective: h = 1 is the consistency model, h = N the Direct CM
    solvers_in_flight.py     the same solves, on one full batch all the time
    pairs.py                 draw n, noise data, take min(h, n) teacher steps: what `distill` iterates

What surrounds it:

    teachers/                an exact Gaussian mixture, UNets of ours and of diffusers pipelines, SDXL
    students/                networks that train side by side as one group
    data/                    where images come from
    metrics/                 ODE error, Frechet distances, encoders
    parameters/              what notebooks and studies may be given, checked
    studies/                 a teacher with its data, students and metrics: mixture, images, SDXL
    training/                `distill`, checkpoints, runs of hours
    evaluation/              samples of teacher and students from the same noise, measured
    analysis/                comparisons, verdicts, intervals
    figures/                 every figure
    report/                  figures and tables on disk, with where they come from
    notebook.py              what each notebook's first cell needs
    __main__.py              `python -m dcm`

`from dcm import Grid, solve, distill, ..` finds the names below; nothing is imported before it is asked for.
"""

# ruff: noqa: F401
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; tests/test_example.py holds it equal to the table below
    from dcm.consistency import ConsistencyFunction, sample
    from dcm.horizon import Batch, Group, Member, distance, horizon_target
    from dcm.metrics.metric import ode_error
    from dcm.pairs import Data, Pairs
    from dcm.schedule import Grid, NoiseSchedule
    from dcm.solvers import SOLVERS, Solution, Solver, solve
    from dcm.students.lockstep import MLPStudents, ModuleStudents, Students
    from dcm.support.errors import InputError
    from dcm.teacher import Teacher, guided_noise
    from dcm.teachers.mixture import GaussianMixtureTeacher
    from dcm.teachers.unet import UNetTeacher
    from dcm.training.loop import State, distill
    from dcm.training.settings import Settings

_NAMES = {
    "consistency": ("ConsistencyFunction", "sample"),
    "horizon": ("Batch", "Group", "Member", "distance", "horizon_target"),
    "metrics.metric": ("ode_error",),
    "pairs": ("Data", "Pairs"),
    "schedule": ("Grid", "NoiseSchedule"),
    "solvers": ("SOLVERS", "Solution", "Solver", "solve"),
    "students.lockstep": ("MLPStudents", "ModuleStudents", "Students"),
    "support.errors": ("InputError",),
    "teacher": ("Teacher", "guided_noise"),
    "teachers.mixture": ("GaussianMixtureTeacher",),
    "teachers.unet": ("UNetTeacher",),
    "training.loop": ("State", "distill"),
    "training.settings": ("Settings",),
}
_HOME = {name: f"dcm.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first asked for (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'dcm' has no attribute {name!r}; its names: {', '.join(sorted(_HOME))}")
    globals()[name] = value = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
