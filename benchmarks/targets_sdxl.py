"""Targets at SDXL's shape with random weights; `python benchmarks/targets.py sdxl`.

An update of the paper's loop takes a minute here. So every way runs on a grid of few intervals (``--coarse``), by the
code that makes targets in training, and is timed in teacher evaluations a second. Pairs a second on N intervals follow
from the evaluations that a pair costs there: for the paper's loop 2 E[max n] over a batch, n uniform on 1..N; in flight
as counted in a whole run of the same scheduler on a cheap teacher; for reused trajectories 2 N / reuse.
"""

import json
from pathlib import Path

import torch
from random_sdxl import SDXL_UNET, RandomLatents, random_prompts, random_unet
from report import Report, kernels, matrix_rate
from targets import Meter, difference, longest_of, paper_loop, scheduled_evaluations

from dcm.horizon import Group
from dcm.pairs import Pairs
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import get_solver
from dcm.teachers import frozen
from dcm.teachers.sdxl import PromptedUNet, Prompts, SDXLTeacher


def evaluation_flops(config: dict, latent: int) -> tuple[float, float]:
    """FLOP of one evaluation of one sample, averaged over both halves of the guidance, counted without computing.

    As the paper's loop calls the network, and as our teacher does, whose null half skips its cross-attention.
    """
    from diffusers import UNet2DConditionModel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        unet = UNet2DConditionModel(**config)
        p = random_prompts(config, 2)
        added = {"text_embeds": p.pooled.to("meta"), "time_ids": p.size_ids.to("meta", torch.float32)}
        x, counts = torch.empty(2, config["in_channels"], latent, latent), []
        for text in (p.embeddings.to("meta"), p.embeddings[:1].to("meta")):
            if len(text) == 1:
                frozen.skip_empty_prompts(unet)
            with FlopCounterMode(display=False) as counter:
                unet(x, torch.ones(2), encoder_hidden_states=text, added_cond_kwargs=added)
            counts.append(counter.get_total_flops() / 2)
    return counts[0], counts[1]


def make_teacher(config: dict, device: torch.device, prompts: int = 64) -> tuple[SDXLTeacher, RandomLatents]:
    """A teacher with random weights, made on the device, and latents to draw."""
    from diffusers import DDPMScheduler

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made: Prompts = random_prompts(config, prompts)
    network = PromptedUNet(random_unet(config, device, dtype), made.to(device), chunk=10**6)
    schedule = NoiseSchedule.from_betas(DDPMScheduler(1000, 0.00085, 0.012, beta_schedule="scaled_linear").betas)
    shape = (config["in_channels"], config["sample_size"], config["sample_size"])
    return SDXLTeacher(network, schedule, shape), RandomLatents(shape, prompts)


def measure(report: Report, given) -> None:
    """Every way that was asked for, the paper's loop first."""
    device, N, B, w, solver = report.device, given.intervals, given.batch, given.guidance, given.solver
    config = json.loads(Path(given.unet).read_text()) if given.unet else SDXL_UNET
    slots, reuse, calls = given.slots[0], given.reuse, get_solver(solver).evaluations * (1 if w == 1 else 2)
    grid, group = Grid(given.coarse), Group(solver, given.coarse, (w,), (given.coarse,), (0,))
    rate = matrix_rate(device)
    plain, skipping = evaluation_flops(config, config["sample_size"])
    skipping = plain if w == 1 else skipping
    over = scheduled_evaluations(solver, N, w, B, slots)
    report.note(**{
        "weights": "random", "timed on intervals": given.coarse, "matrix products [TFLOP/s]": rate / 1e12,
        "GFLOP an evaluation": plain / 1e9, "GFLOP an evaluation in flight": skipping / 1e9,
        "evaluations in flight over the minimum": over,
    })  # fmt: skip
    minimum = calls * (N + 1) / 2
    meter = Meter(report, given.seconds, minimum, skipping, rate)
    teacher, data = make_teacher(config, device)
    first: dict[str, torch.Tensor] = {}  # targets of the first update

    def paper():
        update = 0
        while True:
            update += 1
            s = Pairs(teacher, data, group, B, device).starts(update)
            x, evaluations = paper_loop(teacher, s.x, s.n, s.condition, w, solver, grid)
            first.setdefault("paper", x)
            yield evaluations

    def ours(name: str, **settings):
        for _, batch in Pairs(teacher, data, group, B, device, **settings).between(0, 10**6):
            first.setdefault(name, batch.x_hat[0])
            yield batch.evaluations

    def compare(name: str, other: str) -> None:
        if name in first and other in first:
            report.note(**{f"targets: {name} against {other}": difference(first[name], first[other])})

    def flight(kind: str, compile: str = "regions", attention: str = "cudnn") -> bool:
        """Whether it could be measured."""
        name = f"in flight, {slots} slots" + {"bf16": "", "fp8": ", FP8", "whole": ", compiled whole"}[kind]
        name += ", flash attention" * (attention == "flash")
        before = len(report.rows)
        with report.way(name):
            torch._dynamo.reset()  # what was compiled holds on to its kind of attention
            teacher.freeze("fp8" if kind == "fp8" else "auto")
            teacher.compile_for(slots * (1 if w == 1 else 2), compile if device.type == "cuda" else "no", attention)
            pairs = ours(kind, solves_in_flight=slots)
            meter.measure(name, pairs, 1 + 4 * slots // B, at=over * minimum)
            pairs.close()
            compare(kind, "paper")
            compare("fp8", "bf16")
        return "failed" not in report.rows[before]

    def measured(kind: str, compile: str = "regions") -> None:
        for attention in list(attentions):
            if flight(kind, compile, attention):
                attentions[:] = [attention]  # the others need not be tried again
                return

    attentions = ["cudnn", "flash"] if device.type == "cuda" else ["cudnn"]

    def reused() -> None:
        name = f"reused trajectories, {reuse} pairs each" + ", FP8" * (teacher.precision == "fp8")
        together = max(1, slots * reuse // B)
        with report.way(name):
            pairs = ours("reused", pairs_per_trajectory=reuse, updates_per_solve=together)
            meter.measure(name, pairs, together, at=calls * N / reuse)

    @torch.no_grad()
    def profiled() -> None:
        with report.way("profile"):
            s = Pairs(teacher, data, group, slots, device).starts(1)
            t = grid.time(s.n).to(device)
            found = kernels(lambda: teacher.guided_noise(s.x, t, s.condition, w))
            report.note(profile={"precision": teacher.precision} | found)
            print(json.dumps({k: round(v, 3) for k, v in found["share"].items()}), f"of {found['total [ms]']:.1f} ms", flush=True)

    name = f"paper's loop, batch {B}"
    with report.way(name):
        meter.measure(name, paper(), at=2 * get_solver(solver).evaluations * longest_of(B, N), flops=plain)
    each = {
        "flight": lambda: measured("bf16"), "fp8": lambda: measured("fp8"), "whole": lambda: measured("whole", "whole"),
        "reuse": reused, "profile": profiled,
    }  # fmt: skip
    for way in given.ways:
        each[way]()
