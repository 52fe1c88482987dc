"""Run studies side by side, or the regimes of several: `python workflow/study.py workflow/config/gmm.yaml -j 2`.

It holds the runs' folders, so that a second study cannot start there; has damaged files made again; and becomes
Snakemake, to which every further word of the command line goes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import kernels
import pandas as pd
import torch

from dcm.parameters.check import validate
from dcm.parameters.study import RegimesConfig, StudyConfig, read_config
from dcm.support import lock
from dcm.support.errors import InputError
from dcm.support.files import ROOT, project_path, read_json, read_tensors, sha256

DOWNLOADS = {"cifar10": {"download": True, "data": "cifar10"}, "sdxl": {"download": True}, "diffusers": {"download": True}}  # parameters of the teacher
TABLES = ("ode_error.csv", "ode_error_by_time.csv", "quality.csv", "teacher_quality.csv", "solver_error.csv")


def check_untracked(name: str, folder: str) -> None:
    """Raise :class:`InputError` for a folder of files that git tracks: Snakemake deletes what a failed rule had made.

    What lies in results/, but for results/local, is the repository's own also where git cannot be asked.
    """
    there, results = project_path(folder).resolve(), ROOT / "results"
    found = subprocess.run(["git", "ls-files", "--", there], cwd=ROOT, capture_output=True, text=True)
    shipped = there.is_relative_to(results) and not there.is_relative_to(results / "local")
    if shipped or (found.returncode == 0 and found.stdout):
        raise InputError(
            f"{name} = {folder} holds files of the repository; allowed: a folder in results/local or runs, or elsewhere."
        )


def damage(path: Path, mark: str | None) -> str:
    """What is wrong with a file that a rule wrote, by its checksum `mark` where one was kept; empty if nothing is."""
    if not path.exists():
        return "is gone"
    try:
        if mark and sha256(path) != mark:
            return "is not as it was written"
        if path.suffix == ".safetensors":
            read_tensors(path)
        elif path.suffix == ".json":
            read_json(path)
        elif path.suffix == ".csv" and not len(pd.read_csv(path)):
            return "has no rows"
    except (InputError, ValueError, OSError) as error:
        return f"is damaged ({str(error).splitlines()[0]})"
    return ""


def made(run: Path) -> list[tuple[list[Path], dict[str, str | None]]]:
    """By rule that has run: its outputs, and checksums of all files that it wrote, by their paths from `run`."""
    rules = []
    for path in sorted((run / "checksums").glob("*.json")):
        try:
            note = read_json(path)
            rules.append(([project_path(p) for p in note["outputs"]], note["files"]))
        except (InputError, KeyError, TypeError):
            path.unlink()  # a rule without a note is judged as one of before there were notes
    known = {name for _, files in rules for name in files}
    others = [
        *TABLES,
        "teacher/teacher.json",
        *(str(p.relative_to(run)) for p in run.glob("students/[!.]*.safetensors")),
    ]
    return rules + [([run / name], {name: None}) for name in others if name not in known and (run / name).exists()]


def remove_damaged(run: Path, costly: bool) -> bool:
    """Remove what is damaged in a run's folder, and say so, so that the rules which wrote it run again.

    Returns whether there was any. Raises :class:`InputError` for what took hours: a trained teacher, or students of a
    `costly` study.
    """
    wrong = []
    for outputs, files in made(run):
        if all(path.exists() for path in outputs):  # else its rule runs again anyhow
            each = {run / name: damage(run / name, mark) for name, mark in files.items()}
            wrong += [(path, why, outputs[0]) for path, why in each.items() if why]
    for path, why, output in wrong:
        weights = path.name == "weights.safetensors" and path.exists()
        if weights or (costly and output.parent.name == "students"):
            raise InputError(
                f"{path} {why}, and took long to make: put a copy back, or delete {path if weights else output} to have it "
                "made again."
            )
    for path, why, output in wrong:
        print(f"{path} {why}: it will be made again.", file=sys.stderr)
        path.unlink(missing_ok=True)
        output.unlink(missing_ok=True)
    return bool(wrong)


def configured(configs: list[str], download: bool) -> tuple[list[StudyConfig], RegimesConfig | None]:
    """The studies of configurations, checked, and the regimes where these are what a single configuration is of.

    With `download` what the teachers need is fetched.
    """
    read, regimes = [read_config(path) for path in configs], None
    if len(read) == 1 and "studies" in read[0]:
        regimes = validate(RegimesConfig, read[0])
        read = [regimes.study(name) for name in regimes.studies]
    studies = [validate(StudyConfig, values) for values in read]
    for study in studies if download else []:
        study.teacher.update(DOWNLOADS.get(study.study, {}))
    for name in ("run_dir", "results_dir"):
        if len({getattr(study, name) for study in studies}) < len(studies):
            raise InputError(f"{name} is that of two studies; allowed: one for each.")
    return studies, regimes


def prepare(configs: list[str], download: bool) -> list[StudyConfig]:
    """Check configurations, hold their folders and remove what is damaged there; returns the studies."""
    studies, regimes = configured(configs, download)
    for place in filter(None, [*studies, regimes]):
        for name in ("run_dir", "results_dir"):
            check_untracked(name, getattr(place, name))
    for place in filter(None, [regimes, *studies]):
        lock.hold(project_path(place.run_dir))
        remove_damaged(project_path(place.run_dir), getattr(place, "study", "") == "sdxl")
    return studies


def main() -> None:
    """Take the command line to Snakemake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", type=Path, nargs="+", help="workflow/config/gmm.yaml, or a copy of it; several")
    parser.add_argument("--download", action="store_true", help="fetch what the study needs: CIFAR-10, SDXL")
    parser.add_argument("--switch", action="store_true", help="end with notebook 6 over the results of these studies")
    asked, rest = parser.parse_known_args()
    configs = [str(path.resolve()) for path in asked.configs]
    try:
        studies = prepare(configs, asked.download)
    except InputError as error:
        sys.exit(str(error))
    # Snakemake's own lock is left behind by a kill; ours is not, and files are written whole or not at all.
    options = ["--nolock", "--rerun-incomplete", "--quiet", "all"]
    if asked.download:
        os.environ["HF_HUB_OFFLINE"] = "0"
    # Kernels that are forked are for this machine alone, and not for a GPU, which no fork may use, nor for what macOS links.
    if sys.platform == "linux" and not (torch.cuda.is_available() or any(word.startswith(("-n", "--dry", "--profile", "-e", "--executor")) for word in rest)):
        images = any(study.study != "gmm" for study in studies)
        kernels.start(images, max(study.threads for study in studies))
    given = [f"configs={json.dumps(configs)}", f"download={asked.download}", f"switch={asked.switch}"]
    command = ["-m", "snakemake", "-s", str(ROOT / "workflow/Snakefile"), "--config", *given, *options, *rest]
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *command])


if __name__ == "__main__":
    main()
