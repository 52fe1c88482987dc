"""What every notebook does first: check its parameters, choose the device, set seeds of style, note where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dcm.figures.style import use_style
from dcm.parameters.cell import check
from dcm.parameters.regimes import EVERY_NOTEBOOK
from dcm.report.page import Page
from dcm.studies.base import Study
from dcm.studies.registry import check_folder, check_students, load_study
from dcm.support import lock
from dcm.support.device import find_device, ready_device
from dcm.support.files import ROOT, WRITTEN, project_path
from dcm.support.record import Record


@dataclass
class Session:
    """A notebook's surroundings: checked parameters `p`, the device, and where it came from."""

    notebook: str
    p: Any  # of the notebook's model in dcm.parameters
    device: torch.device
    provenance: Record

    @property
    def run_dir(self) -> Path:
        """Where this study keeps what its notebooks hand to each other."""
        return project_path(self.p.run_dir)

    @cached_property
    def study(self) -> Study:
        """The study, with its teacher loaded."""
        study = load_study(self.p.study, self.run_dir, self.device)
        check_students(study, self.run_dir, getattr(self.p, "groups", ()))
        return study

    def save_figure(self, figure, name: str, caption: str, *drawn_from: Path) -> None:
        """Save a figure into ``run_dir/figures``; `drawn_from` are the files that have the numbers behind it."""
        own = self.run_dir / "provenance" / f"{self.notebook}.json"
        page = Page(self.run_dir / "figures", self.p.study, {self.notebook: self.provenance.record}, own)
        page.figure(figure, name, caption, *drawn_from)

    def finish(self, name: str | None = None, **more) -> None:
        """Write the provenance record, with anything in `more` (teacher evaluations, say), and name the files written."""
        self.provenance.write(self.run_dir / "provenance" / f"{name or self.notebook}.json", **more)
        print("\n".join(["Files written:", *written()]))


def written() -> list[str]:
    """What this process wrote and kept since the notebook's start, several files of one folder as that folder.

    Paths count from the repository's root, where they lie in it.
    """
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(p for p in WRITTEN if p.exists()):
        folders.setdefault(path.parent, []).append(path)
    lines = []
    for folder, paths in folders.items():
        home = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        lines += [f"  {home}/ ({len(paths)} files)"] if len(paths) > 3 else [f"  {home / p.name}" for p in paths]
    return lines


def start(notebook: str, namespace: dict) -> Session:
    """Check the notebook's parameters (its ``globals()``) before anything else happens.

    Raises :class:`dcm.support.errors.InputError`, one sentence, for a parameter that is unknown, of a wrong type or
    impossible, and for a run_dir that another study uses.
    """
    WRITTEN.clear()
    p: Any = check(EVERY_NOTEBOOK[notebook], namespace)
    lock.check_free(project_path(p.run_dir))
    if hasattr(p, "study"):
        facts = p.model_dump(include={"dimension", "modes"})
        check_folder(p.study, project_path(p.run_dir), **facts)
    device = find_device(p.device)
    ready_device(device, p.threads)
    use_style()
    return Session(notebook, p, device, Record(notebook, p, device))
