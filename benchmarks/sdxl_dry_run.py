"""What training SDXL costs on the present device, before anything is downloaded: ``python benchmarks/sdxl_dry_run.py``.

Builds the UNet from its published configuration with random weights, and times the two parts of an update by the code that
trains: the teacher's solves, on the grid of N intervals, and the students' part. An update takes their sum.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from random_sdxl import SDXL_UNET, random_unet
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Group
from dcm.notebook import git_commit
from dcm.pairs import Pairs
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import get_solver
from dcm.students.lora import LoRAStudents
from dcm.studies.sdxl import memory
from dcm.studies.sdxl.pipeline import PRECISIONS
from dcm.studies.sdxl.study import ready_network
from dcm.support.errors import InputError
from dcm.support.files import ROOT, write_json, write_text
from dcm.support.pretrained import check_packages
from dcm.support.processes import find_device, ready_device
from dcm.support.progress import tqdm
from dcm.teachers.sdxl import PromptedUNet, Prompts, SDXLTeacher
from dcm.training.settings import Settings, make_optimizer
from dcm.training.update import Update

RESULT = ROOT / "results" / "sdxl" / "dry_run.json"
UPDATES, EVALUATION_SAMPLES, SEED = 250, 10274, 24  # of the paper
STUDENT_STEPS = 2 * 2 * (1 + 2 + 4 + 3)  # of sdxl.yaml: notebooks 3 and 4, two students, steps 1, 2, 4, three snapshots
GIB = 2**30


class RandomLatents:
    """Normal latents with random prompts, in place of data."""

    def __init__(self, shape: tuple[int, ...], prompts: int):
        self.shape, self.prompts = shape, prompts

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """As :meth:`dcm.data.captions.CachedLatents.draw`."""
        options = dict(generator=generator, device=generator.device)
        return torch.randn(batch, *self.shape, **options), torch.randint(self.prompts, (batch,), **options)


def random_prompts(config: dict, count: int) -> Prompts:
    """Normal embeddings of SDXL's lengths, and the size ids of a full image."""
    g = torch.Generator().manual_seed(0)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    side = 8 * config["sample_size"]
    return Prompts(
        torch.randn(count, 77, config["cross_attention_dim"], generator=g),
        torch.randn(count, pooled, generator=g),
        torch.tensor([[side, side, 0, 0, side, side]]).expand(count, 6),
    )


class Clock:
    """Seconds and peak memory of what a device does."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"

    def now(self) -> float:
        """Seconds, once everything that was asked for is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def reset_peak(self) -> None:
        """Forget the peak so far."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float | None:
        """GiB at most since then; None where it cannot be measured."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.cuda else None


@dataclass(frozen=True)
class Setting:
    """What is timed.

    Attributes
    ----------
    latent : side of a latent, an eighth of the image's.
    timed : updates timed, of each part.
    The others as in :class:`dcm.parameters.notebooks.DistillParameters`; `rank` is its ``width``.
    """

    latent: int = 128
    precision: str = "bf16"
    teacher_precision: str = "auto"
    batch: int = 16
    rank: int = 64
    intervals: int = 100
    guidance: float = 9.0
    solver: str = "ddim"
    timed: int = 2
    gradient_checkpointing: bool = True
    microbatch: int = 0
    solves_in_flight: int = 16

    def check(self, device: torch.device, config: dict) -> None:
        """Raise :class:`InputError` for what cannot be run, before anything is built."""
        for name in ("latent", "batch", "rank", "timed"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} is not possible; allowed: a whole number, at least 1.")
        check_packages()
        Grid(self.intervals), get_solver(self.solver)
        if device.type != "cuda" and config is SDXL_UNET:
            raise InputError(
                "the dry run at SDXL's size needs a GPU, and none is present; allowed here: --unet with a small one."
            )

    @property
    def calls(self) -> int:
        """Teacher evaluations of one solver step of one sample."""
        return get_solver(self.solver).evaluations * (1 if self.guidance == 1 else 2)

    @property
    def expected(self) -> float:
        """Teacher evaluations that an update of the Direct CM costs: n is uniform on 1..N, and costs n steps."""
        return self.batch * self.calls * (self.intervals + 1) / 2


class DryRun:
    """Times updates of CM and Direct CM with random weights; minutes on a GPU.

    Parameters
    ----------
    device : where it runs.
    setting : what is timed.
    config : of the UNet.

    Raises :class:`InputError` for what cannot be run, and when the GPU's memory does not suffice.
    """

    def __init__(self, device: torch.device, setting: Setting, config: dict):
        setting.check(device, config)
        ready_device(device, torch.get_num_threads())
        self.device, self.setting, self.clock = device, setting, Clock(device)
        began = self.clock.now()
        self.unet = random_unet(config, device, PRECISIONS[setting.precision])
        self.network = PromptedUNet(self.unet, random_prompts(config, setting.batch), chunk=setting.batch)
        self.built = self.clock.now() - began
        schedule = NoiseSchedule.from_betas(DDPMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear").betas)
        shape = (config["in_channels"], setting.latent, setting.latent)
        self.teacher, self.data = SDXLTeacher(self.network, schedule, shape), RandomLatents(shape, setting.batch)
        self.teacher.freeze(setting.teacher_precision)
        self.f = ConsistencyFunction(schedule, prediction="epsilon")
        self.wanted = SimpleNamespace(
            gradient_checkpointing=setting.gradient_checkpointing, microbatch=setting.microbatch, optimizer="adamw",
            ema=0.0, width=setting.rank,
        )  # fmt: skip
        self.bar = tqdm(total=5 * setting.timed, desc="dry run", unit="update")

    def students(self, count: int) -> LoRAStudents:
        """Fresh adapters, as training makes them."""
        made = LoRAStudents(self.network, [SEED] * count, self.setting.rank)
        ready_network(made, self.wanted)
        return made

    def pairs(self, *horizons: int) -> Pairs:
        """What an update of students of these horizons trains on."""
        s = self.setting
        group = Group(s.solver, s.intervals, (s.guidance,), horizons, (SEED,))
        return Pairs(self.teacher, self.data, group, s.batch, self.device, solves_in_flight=s.solves_in_flight)

    def estimate(self, students: LoRAStudents) -> dict:
        """Memory as the check before training estimates it, in GiB; raises :class:`InputError` where there is too little."""
        batch = self.setting.batch
        need = memory.needed(students, self.teacher.shape, batch, self.wanted)
        memory.check(need, memory.available(self.device), self.wanted)
        sizes = sorted({1, batch // 4 or 1, batch})
        by_size = {str(m): replace(need, samples=m).total / GIB for m in sizes}
        return {"estimated_gib": need.total / GIB, "estimated_gib_by_microbatch": by_size}

    def warm_up(self) -> None:
        """As samples finish, fewer are left: let cuDNN see every number of them first."""
        for size in range(1, self.setting.batch + 1):
            x, condition = self.data.draw(torch.Generator(self.device).manual_seed(0), size)
            self.teacher.predict_noise(x, torch.full((size,), 500, device=self.device), condition)

    def solving(self, horizon: int) -> tuple[float, int]:
        """Seconds of the teacher's part of all timed updates, and its evaluations."""
        before, evaluations = self.clock.now(), 0
        for _, batch in self.pairs(horizon).between(0, self.setting.timed):
            evaluations += batch.evaluations
            self.bar.update()
        return self.clock.now() - before, evaluations

    def update(self, *horizons: int) -> tuple[float, float | None]:
        """Seconds of the students' part of an update, and the peak in GiB."""
        students, settings, pairs = self.students(len(horizons)), Settings(updates=1), self.pairs(*horizons)
        make, starts = Update(students, make_optimizer(students, settings), settings, self.f), pairs.starts(1)
        batch = pairs.batch_of(1, starts, dict.fromkeys(horizons, starts.x), 0)
        make(batch, settings.lr)
        self.clock.reset_peak()
        before = self.clock.now()
        for _ in range(self.setting.timed):
            make(batch, settings.lr)
            self.bar.update()
        return (self.clock.now() - before) / self.setting.timed, self.clock.peak()

    def run(self) -> dict:
        """Everything that was measured and what follows from it, as JSON can hold it."""
        s, cuda = self.setting, self.clock.cuda
        students = self.students(1)
        adapter = sum(p.numel() for p in students.parameters())
        estimated = self.estimate(students) if cuda else {}
        del students
        if s.solves_in_flight:
            next(self.pairs(1).between(0, 1))  # compiles the teacher
        else:
            self.warm_up()
        solves = {h: self.solving(h) for h in (1, s.intervals)}
        each = {h: seconds / evaluations for h, (seconds, evaluations) in solves.items()}
        per_evaluation, rows = each[s.intervals], []
        for name, horizons in (("CM", [1]), ("Direct CM", [s.intervals]), ("both, side by side", [1, s.intervals])):
            spent = s.batch * s.calls if horizons == [1] else s.expected
            own, peak = self.update(*horizons)
            seconds = own + each[horizons[-1]] * spent
            rows.append({"students": name, "seconds_an_update": seconds, "students_seconds": own, "peak_gib": peak,
                         "evaluations_an_update": spent, "hours": UPDATES * seconds / 3600})  # fmt: skip
        self.bar.close()
        return {
            "weights": "random", "unet_parameters": sum(p.numel() for p in self.unet.parameters()),
            "weights_gib": sum(p.numel() * p.element_size() for p in self.unet.parameters()) / GIB,
            "adapter_parameters": adapter, **estimated,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "memory_gib": torch.cuda.get_device_properties(self.device).total_memory / GIB if cuda else None,
            "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "peft", "transformers")},
            "commit": git_commit(), "date": datetime.now(UTC).date().isoformat(), "settings": asdict(s),
            "build_seconds": self.built, "teacher_evaluations_per_second": 1 / per_evaluation,
            "measured": {f"{h} step(s)": {"seconds": t, "evaluations": n} for h, (t, n) in solves.items()}, "rows": rows,
            "sampling_hours": EVALUATION_SAMPLES * s.calls * s.intervals * per_evaluation / 3600,
            "student_hours": EVALUATION_SAMPLES * STUDENT_STEPS * per_evaluation / 3600,
        }  # fmt: skip


def readable(record: dict) -> str:
    """The record as a few lines and a table in markdown."""
    s, gib = record["settings"], lambda v: "not measured" if v is None else f"{v:.1f} GiB"
    lines = [
        f"Measured with **random weights** on {record['device']} ({record['date']}, commit {record['commit'][:7]}, torch "
        f"{record['versions']['torch']}): UNet of {record['unet_parameters'] / 1e9:.3f} billion parameters "
        f"({record['weights_gib']:.1f} GiB in {s['precision']}), adapter of rank {s['rank']} with "
        f"{record['adapter_parameters'] / 1e6:.1f} million; latents of {s['latent']} x {s['latent']}, batch {s['batch']}, "
        f"N = {s['intervals']}, w = {s['guidance']:g}, {s['solver']}, gradient checkpointing "
        f"{'on' if s['gradient_checkpointing'] else 'off'}"
        + (f", microbatch {s['microbatch']}" if s["microbatch"] else "")
        + (f", {s['solves_in_flight']} solves in flight" if s["solves_in_flight"] else "")
        + (", the teacher in FP8" if s["teacher_precision"] == "fp8" else "")
        + f"; {record['teacher_evaluations_per_second']:.1f} teacher evaluations a second.",
        "",
        f"| students | peak memory | teacher evaluations an update | seconds an update | of these the students' | hours for {UPDATES} updates |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['students']} | {gib(row['peak_gib'])} | {row['evaluations_an_update']:,.0f} | "
            f"{row['seconds_an_update']:.1f} | {row['students_seconds']:.1f} | {row['hours']:.2f} |"
        )
    lines += [
        "",
        f"Solves and the students' part are timed over {s['timed']} updates each; an update takes their sum. The peak is the students'.",
        f"At that rate the teacher's {EVALUATION_SAMPLES:,} evaluation samples (N = {s['intervals']}) would take "
        f"{record['sampling_hours']:.1f} hours, and the students' samples of sdxl.yaml {record['student_hours']:.1f} hours; "
        "decoding and encoding images come on top and were not timed.",
    ]
    if "estimated_gib" in record:
        each = ", ".join(f"{v:.1f} GiB at {m}" for m, v in record["estimated_gib_by_microbatch"].items())
        lines.append(
            f"The check before training estimated {record['estimated_gib']:.1f} GiB of {record['memory_gib']:.1f}; "
            f"by microbatch: {each}."
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command; writes its record as JSON and prints it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    for field in fields(Setting):
        if field.name == "gradient_checkpointing":
            parser.add_argument("--no-gradient-checkpointing", dest=field.name, action="store_false")
        else:
            choices = {"precision": list(PRECISIONS), "teacher_precision": ["auto", "fp8"]}.get(field.name)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, choices=choices)
    parser.add_argument("--unet", type=Path, help="a UNet configuration (JSON) other than SDXL's")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the record goes")
    options = vars(parser.parse_args(arguments))
    out, device, unet = options.pop("out"), options.pop("device"), options.pop("unet")
    try:
        config = json.loads(unet.read_text()) if unet else SDXL_UNET
        record = DryRun(find_device(device), Setting(**options), config).run()
    except InputError as error:
        raise SystemExit(f"{error}") from None
    write_json(out, record)
    write_text(out.with_suffix(".md"), readable(record) + "\n")
    print(readable(record))


if __name__ == "__main__":
    main()
