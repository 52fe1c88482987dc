"""Studies by name."""

from __future__ import annotations

from pathlib import Path

import torch

from dcm.studies.base import Study
from dcm.studies.images import prepare as image_preparation
from dcm.studies.images.study import ImageStudy
from dcm.studies.mixture import MixtureStudy
from dcm.studies.sdxl import prepare as sdxl_preparation
from dcm.studies.sdxl.study import SDXLStudy
from dcm.support.files import read_json, write_json


def load_study(name: str, run_dir: str | Path, device: torch.device) -> Study:
    """The study called `name`, with whatever its teacher left in `run_dir`."""
    if name == "gmm":
        path = Path(run_dir) / "teacher" / "teacher.json"
        about = read_json(path) if path.exists() else {}  # before notebook 1: the study's own mixture
        return MixtureStudy(name, device, about.get("dimension", 2), about.get("modes", 3))
    if name == "sdxl":
        return SDXLStudy(Path(run_dir), device)
    return ImageStudy(name, Path(run_dir), device)


def prepare_teacher(session) -> None:
    """Train, or fetch from the repository, the teacher of the session's study; nothing to do for the exact one.

    Leaves ``run_dir/teacher/teacher.json``, which says what the teacher is and where its data lie.
    """
    if session.p.study == "gmm":
        about = {"study": "gmm", "dimension": session.p.dimension, "modes": session.p.modes}
        write_json(session.run_dir / "teacher" / "teacher.json", about)
        return
    if session.p.study == "sdxl":
        sdxl_preparation.prepare(session.p, session.run_dir, session.device)
        return
    image_preparation.prepare(session.p, session.run_dir, session.device)
