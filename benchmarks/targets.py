"""How fast targets are made: the paper's loop, solves in flight, and trajectories that are used more than once.

    python benchmarks/targets.py gmm|digits|cifar10 [--batch 16] [--intervals 100] [--guidance 9] [--out FILE]

All ways run in this one process on the same teacher. `digits` has random weights here, `cifar10` the shipped ones.
"""

import argparse
import json
import platform
import time
from dataclasses import replace

import torch
from torch import Tensor

from dcm.artifacts import write_json
from dcm.data import ImageSet
from dcm.distill import Group, Settings, batches, draw_starts
from dcm.image_study import DIGITS_NETWORK, SHIPPED
from dcm.schedule import Grid
from dcm.solvers import get_solver
from dcm.studies import find_device, ready_device
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.teachers.unet import UNetConfig, UNetTeacher


@torch.no_grad()
def paper_loop(
    teacher, x: Tensor, n: Tensor, condition: Tensor, w: float, solver: str, grid: Grid
) -> tuple[Tensor, int]:
    """Targets as the paper's code makes them, and the teacher evaluations spent.

    Every sample goes through all the steps of the noisiest member of its batch, finished ones for nothing, and
    guidance is two calls.
    """
    method, schedule, longest = get_solver(solver), teacher.schedule, int(n.max())
    null = teacher.null_condition(condition)

    def guided(y: Tensor, t: Tensor) -> Tensor:
        eps_null = teacher.predict_noise(y, t, null)
        return eps_null + w * (teacher.predict_noise(y, t, condition) - eps_null)

    n = n.to(x.device)
    for k in range(longest):
        now = (n - k).clamp(min=1)
        stepped = method.step(guided, schedule, x, grid.time(now), grid.time(now - 1))
        x = torch.where((n > k).reshape(-1, *[1] * (x.ndim - 1)), stepped, x)
    return x, longest * len(x) * 2 * method.evaluations


def make_teacher(study: str, device: torch.device):
    """(teacher, data) of a study's shape; images are noise, since speed does not depend on them."""
    if study == "gmm":
        teacher = GaussianMixtureTeacher.interleaved_ring()
        return teacher, teacher
    if study == "digits":
        teacher = UNetTeacher(UNetConfig(8, 1, 10, **DIGITS_NETWORK)).eval().requires_grad_(False)
    else:
        teacher = UNetTeacher.load(SHIPPED / "cifar10_teacher")
    teacher = teacher.to(device)
    if device.type == "cuda":
        teacher.accelerate(compile=False)
    images, labels = torch.randint(256, (512, *teacher.shape), dtype=torch.uint8), torch.arange(512) % 10
    return teacher, ImageSet(images, labels, images[:0], labels[:0], tuple("0123456789")).to(device)


def wait(device: torch.device) -> None:
    """Until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


class Meter:
    """Times one way of making pairs, after a warm-up."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds, self.rows = device, seconds, []

    def measure(self, name: str, pairs_of, warm_up: int = 1) -> dict:
        """`pairs_of` yields (pairs, evaluations) for ever; keeps and prints pairs a second and evaluations a pair."""
        began = time.perf_counter()
        for _ in range(warm_up):
            next(pairs_of)
        wait(self.device)
        warm = time.perf_counter() - began
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began, pairs, evaluations = time.perf_counter(), 0, 0
        while time.perf_counter() - began < self.seconds:
            p, e = next(pairs_of)
            wait(self.device)
            pairs, evaluations = pairs + p, evaluations + e
        took = time.perf_counter() - began
        row = {
            "way": name, "pairs a second": pairs / took, "teacher evaluations a pair": evaluations / pairs,
            "evaluations a second": evaluations / took, "warm-up [s]": warm,
        }  # fmt: skip
        if self.device.type == "cuda":
            row["peak memory [GiB]"] = torch.cuda.max_memory_allocated() / 2**30
        self.rows.append(row)
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
        return row


def matrix_rate(device: torch.device) -> float:
    """FLOP/s of a bf16 (GPU) or float32 (CPU) matrix product of 8192 (1024) squared."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    wait(device)
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    wait(device)
    return 10 * 2 * size**3 / (time.perf_counter() - began)


def network_flops(teacher, device: torch.device) -> float | None:
    """FLOP of one evaluation of one sample, matrix products and convolutions counted."""
    if not hasattr(teacher, "unet"):
        return None
    from torch.utils.flop_counter import FlopCounterMode

    x, t, c = torch.randn(2, *teacher.shape, device=device), torch.tensor([5, 5], device=device), torch.zeros(2).long()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        teacher.predict_noise(x, t, c.to(device))
    return counter.get_total_flops() / 2


def main() -> None:
    """Measure every way and print ratios to the first."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("study", choices=("gmm", "digits", "cifar10"))
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--intervals", type=int, default=100)
    arguments.add_argument("--guidance", type=float, default=9.0)
    arguments.add_argument("--solver", default="ddim")
    arguments.add_argument("--slots", type=int, nargs="+", default=[256])
    arguments.add_argument("--reuse", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=5.0, help="to time each way for")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out")
    given = arguments.parse_args()

    device = find_device(given.device)
    ready_device(device, threads=1)
    teacher, data = make_teacher(given.study, device)
    N, B, w = given.intervals, given.batch, given.guidance
    grid, group = Grid(N, teacher.schedule.T), Group(given.solver, N, (w,), (N,), (0,))
    meter = Meter(device, given.seconds)

    def paper(batch: int):
        update = 0
        while True:
            update += 1
            s = draw_starts(teacher, data, group, batch, update, device)
            yield batch, paper_loop(teacher, s.x, s.n, s.condition, w, given.solver, grid)[1]

    def ours(**settings):
        for _, batch in batches(teacher, data, group, Settings(updates=10**6, batch=B, **settings), device):
            yield B, batch.evaluations

    # The same starting points must lead to the same targets, by either way.
    settings = Settings(updates=4, batch=B, slots=given.slots[0], together=4)
    flying = [batch for _, batch in batches(teacher, data, group, settings, device)]
    plain = [batch for _, batch in batches(teacher, data, group, replace(settings, slots=0), device)]
    gap = max(float((a.x_hat - b.x_hat).square().mean()) for a, b in zip(flying, plain))
    print(f"mean squared difference of targets solved in flight and together: {gap:.2g}", flush=True)

    base = meter.measure(f"paper's loop, batch {B}", paper(B))
    for slots in given.slots:
        if device.type == "cpu":
            meter.measure(f"solved together, {slots // B} updates at a time", ours(together=slots // B), slots // B)
        # Until slots are in a steady state and, on a GPU, compiled and captured.
        meter.measure(f"in flight, {slots} slots", ours(slots=slots), 1 + 3 * slots // B)
    together = given.slots[0] * given.reuse // B
    meter.measure(
        f"reused trajectories, {given.reuse} pairs each", ours(reuse=given.reuse, together=together), together
    )

    rate, flops = matrix_rate(device), network_flops(teacher, device)
    needed = (N + 1) / 2 * 2 * get_solver(given.solver).evaluations
    for row in meter.rows:
        row["ratio to paper's loop"] = row["pairs a second"] / base["pairs a second"]
        row["evaluations over minimum"] = row["teacher evaluations a pair"] / needed
        if flops:
            row["share of matrix-product rate"] = row["evaluations a second"] * flops / rate
    about = {
        "study": given.study, "solver": given.solver, "batch": B, "N": N, "w": w, "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, 1 thread",
        "mean squared difference of targets": gap, "matrix products [TFLOP/s]": rate / 1e12, "GFLOP an evaluation": flops / 1e9 if flops else None,
    }  # fmt: skip
    print(json.dumps(about))
    import pandas as pd

    table = pd.DataFrame(meter.rows)
    print(table.round(3).to_markdown(index=False))
    if given.out:
        write_json(given.out, {"about": about, "ways": meter.rows})


if __name__ == "__main__":
    main()
