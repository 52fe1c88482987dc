"""Studies by name; and whether a run folder is one study's."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from dcm.studies import mixture
from dcm.studies.base import Study, teacher_record
from dcm.studies.images import prepare as images
from dcm.studies.images.study import ImageStudy
from dcm.studies.mixture import MixtureStudy
from dcm.studies.sdxl import pipeline
from dcm.studies.sdxl.study import SDXLStudy
from dcm.support.errors import InputError
from dcm.support.files import read_header

# By name: what makes a study of (name, run_dir, device), and notebook 1's work, of (parameters, run_dir, device).
STUDIES: dict[str, tuple[Callable[..., Study], Callable[..., None]]] = {
    "gmm": (MixtureStudy, mixture.prepare),
    "digits": (ImageStudy, images.prepare),
    "cifar10": (ImageStudy, images.prepare),
    "diffusers": (ImageStudy, images.prepare),
    "sdxl": (SDXLStudy, pipeline.prepare),
}


def load_study(name: str, run_dir: str | Path, device: torch.device) -> Study:
    """The study called `name`, with whatever its teacher left in `run_dir`; raises :class:`InputError`."""
    check_folder(name, Path(run_dir))
    return STUDIES[name][0](name, Path(run_dir), device)


def prepare_teacher(session) -> None:
    """Notebook 1's work: train or fetch the teacher of the session's study, and note it in ``teacher/teacher.json``."""
    STUDIES[session.p.study][1](session.p, session.run_dir, session.device)


def check_folder(name: str, run_dir: Path, **facts) -> None:
    """Raise :class:`InputError` when `run_dir` is in use by another study than `name`, or one of other `facts`.

    `facts` are those in its teacher's record: the ``dimension`` and ``modes`` of a mixture.
    """
    there = teacher_record(run_dir) or {}
    used = there or next((students_of(path) for path in sorted((run_dir / "students").glob("[!.]*.safetensors"))), {})
    differ = [f"{k} {there[k]}, not {v}" for k, v in facts.items() if there.get(k, v) != v]
    if used.get("study", name) != name:
        differ = [f"the study {used['study']}, not {name}"]
    if differ:
        raise InputError(f"{run_dir} is in use by {' and '.join(differ)}; choose another run_dir, or delete that folder.")


def check_students(study: Study, run_dir: Path, groups: Iterable[str]) -> None:
    """Raise :class:`InputError` when students in `run_dir` learnt from another teacher than the study's."""
    for name in groups:
        path = run_dir / "students" / f"{name}.safetensors"
        if path.exists() and students_of(path).get("teacher", study.teacher_id) != study.teacher_id:
            raise InputError(f"{path} learnt from another teacher; distil the group {name} again with notebook 2.")


def students_of(path: Path) -> dict:
    """What distilled students say they are of: ``study``, ``teacher`` and the parameters of notebook 2."""
    return read_header(path).get("identity", {})
