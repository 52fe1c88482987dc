"""What a notebook notes of itself: commit, versions, device, time."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from dcm.support.files import write_json

PACKAGES = (
    "torch", "numpy", "scipy", "pandas", "diffusers", "transformers", "peft", "accelerate", "clean-fid", "papermill",
    "snakemake", "matplotlib",
)  # fmt: skip


def git_commit() -> str:
    """The present commit, ``-dirty`` when what makes the numbers differs from it; ``unknown`` outside a repository."""
    here = Path(__file__).parent
    try:
        run = lambda *a: subprocess.run(["git", *a], cwd=here, capture_output=True, text=True, check=True).stdout  # noqa: E731
        made_by = [f":/{folder}" for folder in ("dcm", "notebooks", "workflow", "weights")]
        changed = run("status", "--porcelain", "--untracked-files=no", "--", *made_by).strip()
        return run("rev-parse", "HEAD").strip() + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Record:
    """Where a result came from. Made when a notebook starts, written when it ends.

    Parameters
    ----------
    parameters : what the notebook ran with. device : where it ran.
    """

    def __init__(self, notebook: str, parameters, device: torch.device):
        self.started = time.time()
        self.record = {
            "notebook": notebook,
            "parameters": parameters.model_dump(),
            "commit": git_commit(),
            "python": sys.version.split()[0],
            "packages": {p: _version(p) for p in PACKAGES},
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
            "threads": torch.get_num_threads(),
        }

    def write(self, path: str | Path, **more) -> None:
        """Write the record with the wall time in seconds and anything in `more` (teacher evaluations, say)."""
        wall = round(time.time() - self.started, 1)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(path, self.record | {"wall_seconds": wall, "ended": ended} | more)
