"""Distilled students on disk."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dcm.horizon import Group, method_name, resolve_horizon
from dcm.parameters.notebooks import check_ends
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.support.checkpoint import picked
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, read_tensors


@dataclass
class DistilledGroup:
    """A group of students as notebook 2 left it."""

    name: str
    group: Group
    updates: list[int]  # at which weights were kept, the last being the end
    about: dict  # parameters, wall time in seconds, teacher evaluations
    path: Path
    tensors: dict[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """Of the whole file: what was made from these students is known by it."""
        return fingerprint(self.path)

    def sets(self, steps: Sequence[int]) -> list[tuple[int, int]]:
        """As of :func:`sampled_sets`."""
        return sampled_sets(self.updates, steps, self.group.intervals)

    @property
    def losses(self) -> pd.DataFrame:
        """Loss curves, means over windows of updates: columns update, method, guidance, seed, loss."""
        logged, window, N = self.tensors["loss"].cpu(), self.about["log_window"], self.group.intervals
        return pd.DataFrame(
            {"update": window * k, "method": method_name(m.horizon, N), "guidance": m.guidance, "seed": m.seed, "loss": float(loss)}
            for k, row in enumerate(logged, 1) for m, loss in zip(self.group.members, row)
        )  # fmt: skip

    def students(self, study: Study, update: int, device: torch.device) -> Students:
        """The students with their weights at `update`."""
        seeds = [m.seed for m in self.group.members]
        about = self.about["parameters"]
        students = study.make_students(seeds, about["width"], about.get("lora_rank", 0))
        students.load_state_dict(picked(str(update), self.tensors))
        return students.to(device).trained()


def sampled_sets(updates: Sequence[int], steps: Sequence[int], intervals: int) -> list[tuple[int, int]]:
    """What is sampled, as (update, sampling steps): each snapshot in one step, the end in each of `steps` up to N."""
    return [(update, 1) for update in updates[:-1]] + [(updates[-1], k) for k in steps if k <= intervals]


def students_path(run_dir: str | Path, group: str) -> Path:
    """Where the students of a group lie."""
    return Path(run_dir) / "students" / f"{group}.safetensors"


def load_group(run_dir: str | Path, name: str) -> DistilledGroup:
    """A distilled group; raises :class:`InputError` when notebook 2 has not made it."""
    path = students_path(run_dir, name)
    if not path.exists():
        there = sorted(p.stem for p in path.parent.glob("*.safetensors") if not p.name.startswith("."))
        raise InputError(
            f"group {name!r} is not in {path.parent}; distil it with notebook 2 first; there: {', '.join(there) or 'none'}."
        )
    tensors, about = read_tensors(path)
    if not {"group", "snapshots", "identity", "parameters"} <= about.keys():
        raise InputError(f"{path} holds no students of notebook 2; delete it and run that notebook again.")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in about["group"].items()}
    values["horizons"] = tuple(resolve_horizon(h, values["intervals"]) for h in values["horizons"])
    return DistilledGroup(name, Group(**values), about["snapshots"], about, path, tensors)


def load_groups(run_dir: str | Path, names: Sequence[str], main: str) -> dict[str, DistilledGroup]:
    """Distilled groups by name; raises :class:`InputError` when one is missing or `main` lacks an end of the horizon."""
    loaded = {name: load_group(run_dir, name) for name in names}
    check_ends(main, asdict(loaded[main].group))
    return loaded


def snapshot_updates(updates: int, count: int) -> list[int]:
    """The last of `updates`, and `count` before: at three quarters, and from 1 % on evenly spaced in the logarithm."""
    early = [*np.geomspace(max(1, updates / 100), updates, count)[:-1], 0.75 * updates] if count else []
    return sorted({max(1, round(u)) for u in early} | {updates})
