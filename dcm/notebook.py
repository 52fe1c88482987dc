"""What every notebook does first: check its parameters, choose the device, set seeds of style, note where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from dcm.artifacts import Provenance, project_path
from dcm.parameters import NOTEBOOKS, Parameters, check
from dcm.studies import Study, find_device, load_study, ready_device


@dataclass
class Session:
    """A notebook's surroundings: checked parameters `p`, the device, and where it came from."""

    notebook: str
    p: Parameters
    device: torch.device
    provenance: Provenance

    @property
    def run_dir(self) -> Path:
        """Where this study keeps what its notebooks hand to each other."""
        return project_path(self.p.run_dir)

    @cached_property
    def study(self) -> Study:
        """The study, with its teacher loaded."""
        return load_study(self.p.study, self.run_dir, self.device)

    def finish(self, name: str | None = None, **more) -> None:
        """Write the provenance record, with anything in `more` (teacher evaluations, say)."""
        self.provenance.write(self.run_dir / "provenance" / f"{name or self.notebook}.json", **more)


def start(notebook: str, namespace: dict) -> Session:
    """Check the notebook's parameters (its ``globals()``) before anything else happens.

    Raises :class:`dcm.errors.InputError`, one sentence, for a parameter that is unknown, of a wrong type or impossible.
    """
    p = check(NOTEBOOKS[notebook], namespace)
    device = find_device(p.device)
    ready_device(device, p.threads)
    from dcm.plots import use_style

    use_style()
    return Session(notebook, p, device, Provenance(notebook, p, device))
