"""SDXL's students trained by one process and by several, one a GPU, on a rehearsal's teacher and images.

Times each update, compares the losses, and then kills a training by several processes after its first checkpoint and lets
it go on: ``python benchmarks/sdxl_processes.py``, after ``make sdxl-rehearsal``. Updates are timed once everything is
compiled. An update's time is the sum of its parts, with the solves of an average update: few updates differ in theirs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path

import psutil
import torch
from torch import Tensor

from dcm.horizon import Batch
from dcm.notebook import git_commit
from dcm.pairs import Pairs
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.parameters.study import StudyConfig, read_config
from dcm.solvers import get_solver
from dcm.studies.base import Study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import ROOT, project_path, read_json, write_json, write_text
from dcm.support.processes import Processes, find_device, peak_gib
from dcm.training.launch import distil_group, joined, launch
from dcm.training.loop import distill
from dcm.training.run import PAPERS, GroupTraining
from dcm.training.saved import students_path

WARM_UP, SLACK = 4, 0.02  # updates not timed; largest relative difference of mean losses that is let pass
PARTS = ("solving", "waiting", "averaging", "students")  # of an update


def now(device: torch.device | str) -> float:
    """Seconds, once everything that was asked for is done. (Processes that are launched do not find report.py's clock.)"""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class TimedPairs(Pairs):
    """Pairs that note the seconds that each update's solves take."""

    seconds: list[float] = field(default_factory=list)

    def between(self, start: int, end: int) -> Iterator[tuple[int, Batch]]:
        """As of :class:`Pairs`."""
        before = now(self.device)
        for one in super().between(start, end):
            self.seconds.append(now(self.device) - before)
            yield one
            before = now(self.device)


class TimedProcesses(Processes):
    """Processes that note the seconds that each waits for the others before gradients are averaged, and those of averaging."""

    def __init__(self, processes: Processes, device: torch.device):
        super().__init__(processes.accelerator)
        self.device, self.seconds = device, []

    def average(self, tensors: Iterable[Tensor]) -> None:
        """As of :class:`Processes`."""
        ready = now(self.device)
        self.wait()
        together = now(self.device)
        super().average(tensors)
        self.seconds.append((together - ready, now(self.device) - together))


def timed(study: Study, p: DistillParameters, device: torch.device, processes: Processes) -> None:
    """Train as :func:`dcm.training.run.train_group`; leave losses, evaluations and seconds by update, and the peak.

    Seconds are means over the processes.
    """
    team, rows = TimedProcesses(processes, device), []
    training = GroupTraining(study, p, device, team, PAPERS)
    pairs = TimedPairs(**{f.name: getattr(training.pairs, f.name) for f in fields(Pairs)})
    before = time.perf_counter()
    for state in distill(pairs, training.students, training.settings, study.f, training.optimizer):
        loss = state.loss.tolist()  # waits for the device
        own = torch.tensor([pairs.seconds[-1], *team.seconds[-1]], device=device)
        parts, ended = dict(zip(PARTS, (team.sum(own) / team.size).tolist())), time.perf_counter()
        parts["students"] = ended - before - sum(parts.values())
        rows.append({"loss": loss, "evaluations": state.evaluations} | parts)
        before = ended
    if team.first:
        leave(p, {"rows": rows, "peak_gib": peak_gib(device)})


def left(p: DistillParameters) -> Path:
    """Where a training leaves what was measured of it."""
    return project_path(p.run_dir) / f"{p.group_name}.json"


def leave(p: DistillParameters, found: dict) -> None:
    """Write what was `found`, with the parameters that it holds for."""
    write_json(left(p), found | {"parameters": p.model_dump(mode="json")})


def kept(p: DistillParameters, measure: Callable[[], object]) -> dict:
    """What was left of a training with these parameters; `measure` is called to leave it, where nothing was."""
    if not left(p).exists() or read_json(left(p)).get("parameters") != p.model_dump(mode="json"):
        measure()
    return {name: value for name, value in read_json(left(p)).items() if name != "parameters"}


def measured(p: DistillParameters) -> dict:
    """Seconds an update, losses by update, and peak memory, of training in ``p.processes`` processes."""
    record = kept(p, lambda: launch(p, module="benchmarks.sdxl_processes"))
    before, *rows = record["rows"][WARM_UP - 1 :]
    parts = {part: sum(row[part] for row in rows) / len(rows) for part in PARTS}
    # Both halves of the guidance, over half the grid on average.
    needed = get_solver(p.solver).evaluations * p.batch * (p.intervals + 1)
    parts["solving"] *= needed * len(rows) / (rows[-1]["evaluations"] - before["evaluations"])
    return {
        "processes": p.processes, "seconds_an_update": sum(parts.values()), "parts": parts, "updates_timed": len(rows),
        "peak_gib": record["peak_gib"], "losses": [row["loss"] for row in record["rows"]],
    }  # fmt: skip


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it has started."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=60)
    process.wait()


def killed(p: DistillParameters) -> None:
    """Leave losses by update of a training that was killed after its first checkpoint and then run again."""
    checkpoint = project_path(p.run_dir) / "checkpoints" / f"{p.group_name}.safetensors"
    for old in (checkpoint, students_path(p.run_dir, p.group_name)):
        project_path(old).unlink(missing_ok=True)
    path = checkpoint.with_suffix(".parameters.json")
    write_text(path, p.model_dump_json())
    command = [sys.executable, __file__, "--train", str(path)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while first.poll() is None and not checkpoint.exists():
        time.sleep(0.2)
    if first.poll() is not None:
        raise InputError("training ended before its first checkpoint; more updates would leave time to kill it.")
    kill(first)
    write_text(path, p.model_copy(update={"checkpoint_seconds": 1e9}).model_dump_json())  # writing one more takes time
    again = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
    went_on = [int(line.rsplit(" ", 1)[1].rstrip(".")) for line in again.splitlines() if line.startswith("Going on after")]
    losses = read_json(path.with_suffix(".losses.json"))
    leave(p, {"processes": p.processes, "went_on_after": went_on[0] if went_on else None, "losses": losses})


def train(path: Path) -> None:
    """Train with the parameters in a file, as notebook 2 does, and leave the losses by update beside it."""
    p = validate(DistillParameters, read_json(path))
    device = find_device(p.device)
    study = load_study(p.study, p.run_dir, device)
    group = distil_group(study, p, device)
    losses = group.losses.pivot(index="update", columns="method", values="loss")
    write_json(path.with_suffix(".losses.json"), losses[[*group.losses.method.unique()]].to_numpy().tolist())


def difference(a: list[list[float]], b: list[list[float]]) -> float:
    """Largest relative difference, over students, of losses averaged over all updates."""
    a, b = (torch.tensor(v, dtype=torch.float64).mean(0) for v in (a, b))
    return float(((a - b).abs() / b).max())


def run(folder: Path, processes: list[int], updates: int = 8, kill: bool = True, intervals: int = 0) -> dict:
    """Everything, in the `folder` of a rehearsal, on its `intervals` or on others; raises :class:`InputError`."""
    config = folder / "rehearsal.yaml"
    if not config.exists():
        raise InputError(f"{config} is missing; `make sdxl-rehearsal` writes it, and what is trained on here.")
    study = validate(StudyConfig, read_config(config))
    plain = study.notebook("2_distill", "main") | {"horizons": ["cm", "direct"], "updates": updates, "snapshots": 1}
    plain |= {"intervals": intervals} if intervals else {}
    of = lambda name, **more: validate(DistillParameters, plain | {"group_name": name} | more)
    rows, out = [], folder / "processes.json"

    def noted(after: dict | None = None) -> dict:
        """Write the record of what was measured so far, the training that was killed last, and return it."""
        record = {
            "settings": {k: plain[k] for k in ("batch", "intervals", "updates", "optimizer", "solves_in_flight", "microbatch")},
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "commit": git_commit(),
            "rows": rows, "killed": after,
            "speed_up": {r["processes"]: rows[0]["seconds_an_update"] / r["seconds_an_update"] for r in rows},
            "difference": {r["processes"]: difference(r["losses"], rows[0]["losses"]) for r in rows},
            "difference_killed": difference(after["losses"], rows[-1]["losses"]) if after else None,
        }  # fmt: skip
        write_json(out, record)
        return record

    for n in processes:
        rows.append(measured(of(f"processes{n}", processes=n)))
        noted()
        print(f"{n} process(es): {rows[-1]['seconds_an_update']:.2f} s an update", flush=True)
    p = of("killed", processes=max(processes), checkpoint_seconds=1.0)
    return noted(kept(p, lambda: killed(p)) if kill else None)


def check(record: dict) -> None:
    """Raise :class:`InputError` where losses differ too much."""
    if (worst := max(*record["difference"].values(), record["difference_killed"] or 0)) > SLACK:
        raise InputError(f"losses differ by {worst:.2g}; allowed: {SLACK}.")


def readable(record: dict) -> str:
    """The record as a table in markdown."""
    lines = [f"On {record['device']}; {', '.join(f'{k} {v}' for k, v in record['settings'].items())}.", "",
             f"| processes, one a GPU | seconds an update | of these {' | '.join(PARTS)} | speed-up | peak memory [GiB] | losses differ by |",
             f"| --- |{' ---: |' * (len(PARTS) + 4)}"]  # fmt: skip
    for r in record["rows"]:
        n, peak = r["processes"], f"{r['peak_gib']:.1f}" if r["peak_gib"] else ""
        parts = " | ".join(f"{seconds:.2f}" for seconds in r["parts"].values())
        lines.append(f"| {n} | {r['seconds_an_update']:.2f} | {parts} | {record['speed_up'][n]:.2f} | {peak} | {record['difference'][n]:.2g} |")
    if after := record["killed"]:
        went_on, by = after["went_on_after"], record["difference_killed"]
        lines += ["", f"Killed after a checkpoint and run again by {after['processes']} process(es): it went on after update {went_on}, and its losses differ by {by:.2g}."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """The command; writes its record into the rehearsal's folder, and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="runs/rehearsal", help="of the rehearsal")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="the first is the baseline")
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--intervals", type=int, default=0, help="N; by default the rehearsal's")
    parser.add_argument("--no-kill", dest="kill", action="store_false")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("parameters", nargs="?", help=argparse.SUPPRESS)  # of a process that was launched
    given = parser.parse_args()
    if given.train:
        return train(given.train)
    if given.parameters:
        return joined(given.parameters, timed)
    if given.updates <= WARM_UP:
        raise SystemExit(f"updates = {given.updates} is not possible; allowed: at least {WARM_UP + 1}.")
    try:
        record = run(project_path(given.folder), given.processes, given.updates, given.kill, given.intervals)
        print(readable(record))
        check(record)
    except InputError as error:
        raise SystemExit(f"{error}") from None


if __name__ == "__main__":
    main()
