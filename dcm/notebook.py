"""What every notebook does first: check its parameters, choose the device, set the style, note where it runs."""

import platform
import subprocess
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from dcm.figures.style import use_style
from dcm.parameters.cell import check
from dcm.parameters.notebooks import EVERY_NOTEBOOK
from dcm.report.page import Page
from dcm.studies.base import Study
from dcm.studies.registry import check_folder, check_students, load_study
from dcm.support import lock
from dcm.support.files import ROOT, WRITTEN, project_path, write_json
from dcm.support.processes import find_device, peak_gib, ready_device

PACKAGES = (
    "torch", "numpy", "scipy", "pandas", "diffusers", "transformers", "peft", "accelerate", "clean-fid", "papermill",
    "snakemake", "matplotlib",
)  # fmt: skip
MADE_BY = ("dcm", "notebooks", "workflow", "weights")  # folders that the numbers depend on


@dataclass
class Session:
    """A notebook's surroundings: checked parameters `p`, the device, and the `record` of where its results came from."""

    notebook: str
    p: Any  # of the notebook's model in dcm.parameters
    device: torch.device
    record: dict
    started: float = field(default_factory=time.time)

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
        page = Page(self.run_dir / "figures", self.p.study, {self.notebook: self.record}, own)
        page.figure(figure, name, caption, *drawn_from)

    def finish(self, name: str | None = None, peak: float = 0.0, **more) -> None:
        """Write the record with the wall time and anything in `more` (teacher evaluations, say), and name the files written.

        Several files of one folder are named as that folder; paths count from the repository's root, where they lie in it.
        `peak` : GiB of a GPU's memory that other processes held for this notebook at most.
        """
        wall, ended = round(time.time() - self.started, 1), datetime.now(UTC).isoformat(timespec="seconds")
        about = self.record | {"wall_seconds": wall, "ended": ended} | more
        if self.device.type == "cuda":
            about["peak_gib"] = round(max(peak, peak_gib(self.device)), 2)
        write_json(self.run_dir / "provenance" / f"{name or self.notebook}.json", about)
        folders: dict[Path, list[Path]] = {}
        for path in dict.fromkeys(filter(Path.exists, WRITTEN)):
            path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            folders.setdefault(path.parent, []).append(path)
        print("Files written:")
        for folder, paths in folders.items():
            lines = [f"{folder}/ ({len(paths)} files)"] if len(paths) > 3 else paths
            print(*(f"  {line}" for line in lines), sep="\n")


def git_commit() -> str:
    """The present commit, ``-dirty`` when what makes the numbers differs from it; ``unknown`` outside a repository."""
    try:
        run = lambda *a: subprocess.run(["git", *a], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        changed = run("status", "--porcelain", "--untracked-files=no", "--", *MADE_BY)
        return run("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def start(notebook: str, namespace: dict) -> Session:
    """Check the notebook's parameters (its ``globals()``) before anything else happens.

    Raises :class:`dcm.support.errors.InputError`, one sentence, for a parameter that is unknown, of a wrong type or
    impossible, and for a run_dir that another study uses.
    """
    WRITTEN.clear()
    p: Any = check(EVERY_NOTEBOOK[notebook], namespace)
    lock.check_free(project_path(p.run_dir))
    if hasattr(p, "study"):
        check_folder(p.study, project_path(p.run_dir), **p.model_dump(include={"dimension", "modes"}))
    device = find_device(p.device)
    ready_device(device, p.threads)
    use_style()
    record = {
        "notebook": notebook, "parameters": p.model_dump(), "commit": git_commit(), "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES if any(metadata.distributions(name=name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return Session(notebook, p, device, record)
