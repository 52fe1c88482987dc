"""What training SDXL costs on the present device, before anything is downloaded: ``python benchmarks/sdxl_dry_run.py``.

Builds the UNet from its published configuration with random weights and times updates of CM and Direct CM by the code
that trains them. The CM is timed as it is; of the Direct CM, whose update takes minutes, the student's part and the
time of a teacher evaluation are measured on a coarser grid, and the evaluations of the real one are added up.
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
from dcm.training.loop import distill
from dcm.training.settings import Settings

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
    timed : updates timed, after one that is not.
    coarse : intervals on which the Direct CM is timed, in place of `intervals`.
    The others as in :class:`dcm.parameters.notebooks.DistillParameters`; `rank` is its ``width``.
    """

    latent: int = 128
    precision: str = "bf16"
    batch: int = 16
    rank: int = 64
    intervals: int = 100
    guidance: float = 9.0
    solver: str = "ddim"
    timed: int = 3
    coarse: int = 20
    gradient_checkpointing: bool = True
    microbatch: int = 0

    def check(self, device: torch.device, config: dict) -> None:
        """Raise :class:`InputError` for what cannot be run, before anything is built."""
        for name in ("latent", "batch", "rank", "timed"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)} is not possible; allowed: a whole number, at least 1.")
        check_packages()
        Grid(self.intervals), Grid(self.coarse), get_solver(self.solver)
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
        self.f = ConsistencyFunction(schedule, prediction="epsilon")
        self.wanted = SimpleNamespace(
            gradient_checkpointing=setting.gradient_checkpointing, microbatch=setting.microbatch, optimizer="adamw",
            ema=0.0, width=setting.rank,
        )  # fmt: skip
        self.bar = tqdm(total=2 * (1 + setting.timed) + setting.timed, desc="dry run", unit="update")

    def students(self) -> LoRAStudents:
        """Fresh adapters, as training makes them."""
        made = LoRAStudents(self.network, [SEED], self.setting.rank)
        ready_network(made, self.wanted)
        return made

    def pairs(self, grid: int, horizon: int) -> Pairs:
        """What an update trains on, of one student."""
        group = Group(self.setting.solver, grid, (self.setting.guidance,), (horizon,), (SEED,))
        return Pairs(self.teacher, self.data, group, self.setting.batch, self.device)

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

    def updates(self, students: LoRAStudents, grid: int, horizon: int) -> tuple[list[float], float | None]:
        """Seconds of each timed update, and the peak in GiB."""
        seconds: list[float] = []
        self.clock.reset_peak()
        before = self.clock.now()
        for _ in distill(self.pairs(grid, horizon), students, Settings(updates=1 + self.setting.timed), self.f):
            now = self.clock.now()
            seconds.append(now - before)
            before = now
            self.bar.update()
        return seconds[1:], self.clock.peak()

    def solving(self, grid: int) -> tuple[list[float], int]:
        """Seconds of the timed updates' teacher part alone, on the same draws, and its evaluations."""
        seconds, evaluations = [], 0
        for update in range(2, 2 + self.setting.timed):
            before = self.clock.now()
            [drawn] = self.pairs(grid, grid).solved([update])
            seconds.append(self.clock.now() - before)
            evaluations += drawn.evaluations
            self.bar.update()
        return seconds, evaluations

    def run(self) -> dict:
        """Everything that was measured and what follows from it, as JSON can hold it."""
        s, cuda = self.setting, self.clock.cuda
        students = self.students()
        adapter = sum(p.numel() for p in students.parameters())
        estimated = self.estimate(students) if cuda else {}
        self.warm_up()
        cm, cm_peak = self.updates(students, s.intervals, 1)
        direct, direct_peak = self.updates(self.students(), s.coarse, s.coarse)
        solving, evaluations = self.solving(s.coarse)
        self.bar.close()

        per_evaluation, student = sum(solving) / evaluations, max(0.0, (sum(direct) - sum(solving)) / s.timed)
        cm_seconds, direct_seconds = sum(cm) / s.timed, student + per_evaluation * s.expected
        # Side by side the CM rides on the Direct CM's trajectory, and adds its own part and its weights, gradients, moments.
        both = direct_seconds + max(0.0, cm_seconds - per_evaluation * s.batch * s.calls)
        both_peak = direct_peak and max(cm_peak or 0.0, direct_peak) + 16 * adapter / GIB
        return {
            "weights": "random", "unet_parameters": sum(p.numel() for p in self.unet.parameters()),
            "weights_gib": sum(p.numel() * p.element_size() for p in self.unet.parameters()) / GIB,
            "adapter_parameters": adapter, **estimated,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "memory_gib": torch.cuda.get_device_properties(self.device).total_memory / GIB if cuda else None,
            "versions": {name: metadata.version(name) for name in ("torch", "diffusers", "peft", "transformers")},
            "commit": git_commit(), "date": datetime.now(UTC).date().isoformat(), "settings": asdict(s),
            "build_seconds": self.built, "teacher_evaluations_per_second": 1 / per_evaluation,
            "measured": {"cm_seconds": cm, "direct_seconds_coarse": direct, "solving_seconds_coarse": solving,
                         "evaluations_coarse": evaluations, "student_seconds": student},
            "rows": [
                {"students": name, "seconds_an_update": seconds, "peak_gib": peak, "evaluations_an_update": spent,
                 "hours": UPDATES * seconds / 3600, "extrapolated": name != "CM", "peak_estimated": "both" in name}
                for name, seconds, peak, spent in (
                    ("CM", cm_seconds, cm_peak, s.batch * s.calls), ("Direct CM", direct_seconds, direct_peak, s.expected),
                    ("both, side by side", both, both_peak, s.expected),
                )
            ],
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
        + f"; {record['teacher_evaluations_per_second']:.1f} teacher evaluations a second.",
        "",
        f"| students | peak memory | teacher evaluations an update | seconds an update | hours for {UPDATES} updates |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in record["rows"]:
        lines.append(
            f"| {row['students']} | {gib(row['peak_gib'])}{' (estimated)' if row['peak_estimated'] and row['peak_gib'] else ''} | {row['evaluations_an_update']:,.0f} | "
            f"{row['seconds_an_update']:.1f}{' (extrapolated)' if row['extrapolated'] else ''} | {row['hours']:.2f} |"
        )
    lines += [
        "",
        f"The CM's seconds and peak are measured over {s['timed']} updates. The Direct CM's are extrapolated: its updates were timed "
        f"on {s['coarse']} intervals instead of {s['intervals']}, and the evaluations of the {s['intervals']} added at the "
        "measured time of one; its peak is that of those updates. The last row is made of the other two.",
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
            choices = list(PRECISIONS) if field.name == "precision" else None
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, choices=choices)
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
