"""What training SDXL costs on the present device, before anything is downloaded: ``python benchmarks/sdxl_dry_run.py``.

Builds the UNet from its published configuration with random weights, and times the two parts of an update by the code that
trains: the teacher's solves, on the grid of N intervals, and the students' part. An update takes their sum. Beside it, in
the same process: the paper's loop, and the teacher in FP8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from random_sdxl import SDXL_UNET, RandomLatents, random_prompts, random_unet
from report import GIB, Clock, Kept, kernels
from targets import longest_of, paper_loop

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Group
from dcm.notebook import git_commit
from dcm.pairs import Pairs
from dcm.parameters.check import validate
from dcm.parameters.study import StudyConfig, read_config
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import get_solver
from dcm.students.lora import LoRAStudents
from dcm.studies.sdxl import memory
from dcm.studies.sdxl.pipeline import PRECISIONS
from dcm.studies.sdxl.study import ready_network
from dcm.support.cuda_graph import Replay
from dcm.support.errors import InputError
from dcm.support.files import ROOT, write_json, write_text
from dcm.support.pretrained import check_packages
from dcm.support.processes import find_device, ready_device
from dcm.teacher import guided_noise
from dcm.teachers import frozen
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.training.settings import Settings, make_optimizer
from dcm.training.update import Update

RESULT = ROOT / "results" / "sdxl" / "dry_run.json"
CONFIG = ROOT / "workflow" / "config" / "sdxl.yaml"
SEED = 24
COARSE = 4  # intervals that the paper's loop is timed on
PATHS = {"paper": "the paper's loop", "flight": "{slots} solves in flight", "fp8": "{slots} solves in flight, FP8"}


def configured() -> dict:
    """What sdxl.yaml says of training, in the parameters of notebook 2, and the rest of :class:`Setting`."""
    study = validate(StudyConfig, read_config(CONFIG))
    p = study.notebook("2_distill", study.main_group)
    shared = {name: p[name] for name in ("batch", "intervals", "solver", "optimizer", "gradient_checkpointing", "microbatch")}
    own = {"latent": study.teacher["resolution"] // 8, "precision": study.teacher["precision"], "rank": p["width"]}
    return shared | own | {"guidance": p["guidance"][0], "slots": p["solves_in_flight"], "updates": p["updates"]}


@dataclass(frozen=True)
class Setting:
    """What is timed; by default what sdxl.yaml runs (:func:`configured`).

    Attributes
    ----------
    latent : side of a latent, an eighth of the image's.
    rank : ``width`` of :class:`dcm.parameters.notebooks.DistillParameters`. slots : its ``solves_in_flight``.
    timed : updates timed, of each part.
    The others as there.
    """

    latent: int
    precision: str
    batch: int
    rank: int
    intervals: int
    guidance: float
    solver: str
    updates: int
    optimizer: str
    gradient_checkpointing: bool
    microbatch: int
    slots: int
    timed: int = 2

    def check(self, device: torch.device, config: dict, paths: Sequence[str]) -> None:
        """Raise :class:`InputError` for what cannot be run, before anything is built."""
        for name in ("latent", "batch", "rank", "timed", "slots"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} is not possible; allowed: a whole number, at least 1.")
        check_packages()
        Grid(self.intervals), get_solver(self.solver)
        if device.type != "cuda" and config is SDXL_UNET:
            raise InputError(
                "the dry run at SDXL's size needs a GPU, and none is present; allowed here: --unet with a small one."
            )
        if "fp8" in paths:
            frozen.check_float8(device)

    @property
    def calls(self) -> int:
        """Teacher evaluations of one solver step of one sample."""
        return get_solver(self.solver).evaluations * (1 if self.guidance == 1 else 2)

    def evaluations(self, path: str, horizon: int) -> float:
        """Teacher evaluations that an update costs, expected over n, uniform on 1..N.

        In the paper's loop every sample takes the steps of the noisiest one of its batch; in flight each takes its own, but
        for slots that stay empty at the end.
        """
        steps = longest_of(self.batch, self.intervals) if path == "paper" else (self.intervals + 1) / 2
        return self.batch * self.calls * (1 if horizon == 1 else steps)


class DryRun:
    """Times updates of CM and Direct CM with random weights; minutes on a GPU.

    Parameters
    ----------
    device : where it runs.
    setting : what is timed.
    config : of the UNet.
    paths : names from :data:`PATHS`.

    Raises :class:`InputError` for what cannot be run, and when the GPU's memory does not suffice.
    """

    def __init__(self, device: torch.device, setting: Setting, config: dict, paths: Sequence[str]):
        setting.check(device, config, paths)
        ready_device(device, torch.get_num_threads())
        self.device, self.setting, self.paths, self.clock = device, setting, paths, Clock(device)
        self.unet = random_unet(config, device, PRECISIONS[setting.precision])
        self.network = PromptedUNet(self.unet, random_prompts(config, setting.batch).to(device), chunk=setting.batch)
        schedule = NoiseSchedule.from_betas(DDPMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear").betas)
        shape = (config["in_channels"], setting.latent, setting.latent)
        self.teacher, self.data = SDXLTeacher(self.network, schedule, shape), RandomLatents(shape, setting.batch)
        self.f = ConsistencyFunction(schedule, prediction="epsilon")
        self.wanted = SimpleNamespace(
            gradient_checkpointing=setting.gradient_checkpointing, microbatch=setting.microbatch,
            optimizer=setting.optimizer, ema=0.0, width=setting.rank, guidance=[setting.guidance], solves_in_flight=setting.slots,
        )  # fmt: skip

    def students(self, count: int) -> LoRAStudents:
        """Fresh adapters, as training makes them."""
        made = LoRAStudents(self.network, [SEED] * count, self.setting.rank).to(self.device)
        ready_network(made, self.wanted)
        return made

    def pairs(self, *horizons: int) -> Pairs:
        """What an update of students of these horizons trains on."""
        s = self.setting
        group = Group(s.solver, s.intervals, (s.guidance,), horizons, (SEED,))
        return Pairs(self.teacher, self.data, group, s.batch, self.device, solves_in_flight=s.slots)

    def estimate(self) -> dict:
        """Memory as the check before training estimates it, in GiB; raises :class:`InputError` where there is too little."""
        students, batch = self.students(1), self.setting.batch
        need = memory.needed(students, self.teacher.shape, batch, self.wanted)
        memory.check(need, memory.available(self.device), self.wanted)
        return {"estimated_gib": need.total / GIB, "adapter_parameters": sum(p.numel() for p in students.parameters())}

    def solving(self, path: str, horizon: int) -> dict:
        """Seconds and teacher evaluations of the teacher's part of all timed updates, after one that is not timed; for h = N :meth:`profile`."""
        s = self.setting
        if path == "paper":  # on a grid of few intervals, where every step costs what it does on the real one
            N = min(COARSE, s.intervals) if horizon > 1 else s.intervals
            n, starts = torch.full((s.batch,), min(horizon, N)), map(self.pairs(horizon).starts, range(s.timed + 1))
            args = s.guidance, s.solver, Grid(N)
            updates = (paper_loop(self.teacher, at.x, n, at.condition, *args)[1] for at in starts)
        else:
            updates = (batch.evaluations for _, batch in self.pairs(horizon).between(0, s.timed + 1))
        next(updates)
        before, evaluations = self.clock.now(), sum(updates)
        found = {"seconds": self.clock.now() - before, "evaluations": evaluations}
        return found | ({"kernels": self.profile(path)} if self.clock.cuda and horizon == s.intervals else {})

    def update(self, *horizons: int) -> dict[str, float | None]:
        """Seconds of the students' part of an update, and the peak in GiB."""
        students, settings, pairs = self.students(len(horizons)), Settings(updates=1, optimizer=self.setting.optimizer), self.pairs(*horizons)
        make, starts = Update(students, make_optimizer(students, settings), settings, self.f), pairs.starts(1)
        batch = pairs.batch_of(1, starts, dict.fromkeys(horizons, starts.x), 0)
        self.clock.reset_peak()
        for _ in range(1 + Replay.WARM_UP):  # as they stand, and then as one CUDA graph, where that is possible
            make(batch, settings.lr)
        before = self.clock.now()
        for _ in range(self.setting.timed):
            make(batch, settings.lr)
        found = {"seconds": (self.clock.now() - before) / self.setting.timed, "peak_gib": self.clock.peak()}
        return found | ({"kernels": kernels(lambda: make(batch, settings.lr))} if self.clock.cuda else {})

    @torch.no_grad()
    def profile(self, path: str) -> dict:
        """:func:`report.kernels` of one step of the teacher's on this path; outside its CUDA graph, so it may wait for the CPU."""
        s, starts = self.setting, self.pairs(1).starts(1)
        t, stepped = Grid(s.intervals).time(starts.n).to(self.device), s.slots if path != "paper" else s.batch
        x, t, c = (v.repeat(-(-stepped // s.batch), *[1] * (v.ndim - 1))[:stepped] for v in (starts.x, t, starts.condition))
        return kernels(lambda: guided_noise(self.teacher, x, t, c, s.guidance))

    def run(self, out: Path) -> dict:
        """Everything that was measured and what follows from it, as JSON can hold it; `out` keeps each part once it is known."""
        s, cuda, rows, profiles = self.setting, self.clock.cuda, [], {}
        about = {"device": torch.cuda.get_device_name(self.device) if cuda else "cpu", "commit": git_commit(), "settings": asdict(s)}
        kept = Kept(out, about | {"channels": list(self.unet.config.block_out_channels)})
        estimated = kept("estimate", self.estimate) if cuda else {}
        members = {"CM": [1], "Direct CM": [s.intervals], "both": [1, s.intervals]}
        own = {name: kept(name, partial(self.update, *horizons)) for name, horizons in members.items()}
        for path in self.paths:
            self.teacher.freeze("fp8" if path == "fp8" else "auto")
            torch._dynamo.reset()
            solved = {h: kept(f"{path}, h = {h}", partial(self.solving, path, h)) for h in (1, s.intervals)}
            profiles |= {path: solved[s.intervals]["kernels"]} if cuda else {}
            self.teacher.forget()
            for name, horizons in members.items():
                took, spent = solved[longest := horizons[-1]], s.evaluations(path, longest)
                teachers = took["seconds"] / took["evaluations"] * spent
                rows.append({"path": path, "students": name, "teacher_seconds": teachers, "evaluations": spent,
                             "seconds": teachers + own[name]["seconds"], "evaluations_a_second": spent / teachers})  # fmt: skip
        return about | estimated | {
            "weights": "random", "unet_parameters": sum(p.numel() for p in self.unet.parameters()),
            "weights_gib": sum(p.numel() * p.element_size() for p in self.unet.parameters()) / GIB,
            "memory_gib": torch.cuda.get_device_properties(self.device).total_memory / GIB if cuda else None,
            "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "peft", "transformers")},
            "date": datetime.now(UTC).date().isoformat(), "students": own, "rows": rows, "profiles": profiles,
        }  # fmt: skip


def readable(record: dict) -> str:
    """The record as a few lines and two tables in markdown."""
    s, gib = record["settings"], lambda v: "not measured" if v is None else f"{v:.1f} GiB"
    checkpointing = f"gradient checkpointing {'on' if s['gradient_checkpointing'] else 'off'}, microbatch {s['microbatch'] or 'all'}"
    first = record["rows"][0]["path"]
    base = {row["students"]: row["seconds"] for row in record["rows"] if row["path"] == first}
    lines = [
        f"Measured with **random weights** on {record['device']} ({record['date']}, commit {record['commit'][:7]}, torch "
        f"{record['versions']['torch']}): UNet of {record['unet_parameters'] / 1e9:.3f} billion parameters "
        f"({record['weights_gib']:.1f} GiB in {s['precision']}), adapters of rank {s['rank']}; latents of {s['latent']} x {s['latent']}, batch "
        f"{s['batch']}, N = {s['intervals']}, w = {s['guidance']:g}, {s['solver']}, {s['optimizer']}, {checkpointing}.",
        "",
        f"| teacher | students | seconds an update | of these the teacher's | evaluations an update | evaluations a second | against {PATHS[first].format(**s)} | hours for {s['updates']} updates |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {PATHS[r['path']].format(**s)} | {r['students']} | {r['seconds']:.1f} | {r['teacher_seconds']:.1f} | {r['evaluations']:,.0f} | "
        f"{r['evaluations_a_second']:.1f} | {base[r['students']] / r['seconds']:.2f} | {r['seconds'] * s['updates'] / 3600:.2f} |"
        for r in record["rows"]
    ]
    lines += ["", "| students | their part of an update [s] | peak memory |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {own['seconds']:.2f} | {gib(own['peak_gib'])} |" for name, own in record["students"].items()]
    lines += ["", f"Solves and the students' part are timed over {s['timed']} updates each, and an update takes their sum."]
    parts = {PATHS[name].format(**s): p for name, p in record.get("profiles", {}).items()}
    parts |= {f"students: {name}": own["kernels"] for name, own in record["students"].items() if "kernels" in own}
    if parts:
        kinds = [*next(iter(parts.values()))["share"]]
        lines += ["", "Where the GPU's time goes in one solver step of the teacher, and in the students' part of an update:", "",
                  f"| | ms | busy | {' | '.join(kinds)} |", f"| --- | ---: | ---: |{' ---: |' * len(kinds)}"]  # fmt: skip
        shares = lambda p: " | ".join(f"{share:.2f}" for share in p["share"].values())
        lines += [f"| {name} | {p['total [ms]']:.0f} | {p['busy']:.2f} | {shares(p)} |" for name, p in parts.items()]
        lines += [""]
    if "estimated_gib" in record:
        lines.append(f"The check before training estimated {record['estimated_gib']:.1f} GiB of {record['memory_gib']:.1f} for one student.")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command; writes its record as JSON and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    for name, default in (configured() | {"timed": Setting.timed}).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", action=argparse.BooleanOptionalAction, default=default)
        else:
            choices = {"precision": list(PRECISIONS), "optimizer": ["adamw", "adamw8bit"]}.get(name)
            parser.add_argument(f"--{name}", type=type(default), default=default, choices=choices)
    parser.add_argument("--paths", nargs="+", default=["paper", "flight"], choices=list(PATHS), help="the first is the baseline")
    parser.add_argument("--unet", type=Path, help="a UNet configuration (JSON) other than SDXL's")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the record goes")
    options = vars(parser.parse_args(arguments))
    out, device, unet, paths = (options.pop(name) for name in ("out", "device", "unet", "paths"))
    try:
        config = json.loads(unet.read_text()) if unet else SDXL_UNET
        record = DryRun(find_device(device), Setting(**options), config, paths).run(kept := out.with_suffix(".kept.json"))
    except InputError as error:
        raise SystemExit(f"{error}") from None
    write_json(out, record)
    write_text(out.with_suffix(".md"), readable(record) + "\n")
    kept.unlink()
    print(readable(record))


if __name__ == "__main__":
    main()
