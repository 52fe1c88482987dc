"""How fast targets are made: the paper's loop, solves in flight, and trajectories that are used more than once.

    python benchmarks/targets.py gmm|digits|cifar10|sdxl [--batch 16] [--intervals 100] [--guidance 9] [--out FILE]

All ways run in this one process on the same teacher. `digits` and `sdxl` have random weights here, `cifar10` the shipped
ones. `sdxl` is timed on a few solver steps and extrapolated: see targets_sdxl.py.
"""

import argparse
import time
from dataclasses import replace

import torch
from report import GIB, Report, matrix_rate, wait
from torch import Tensor

from dcm.data.images import ImageSet
from dcm.horizon import Group
from dcm.pairs import Pairs
from dcm.schedule import Grid
from dcm.solvers import get_solver
from dcm.studies.images.prepare import DIGITS_NETWORK, SHIPPED
from dcm.support.processes import find_device, ready_device
from dcm.teachers.mixture import GaussianMixtureTeacher
from dcm.teachers.unet import UNetConfig, UNetTeacher

SOLVES = 100  # a slot, over which the evaluations in flight are counted, from empty slots to empty slots


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


def difference(a: Tensor, b: Tensor) -> float:
    """Mean squared difference of `a` from `b`, relative to b's variance."""
    a, b = a.double(), b.double()
    return float((a - b).square().mean() / b.var())


def longest_of(batch: int, N: int) -> float:
    """E[max n] of `batch` independent n, uniform on 1..N."""
    return N - sum((k / N) ** batch for k in range(1, N))


def scheduled_evaluations(solver: str, N: int, w: float, batch: int, slots: int) -> float:
    """Evaluations over the minimum that :func:`solve_in_flight` spends on a whole run: a matter of n alone."""
    teacher, group = GaussianMixtureTeacher.interleaved_ring(), Group(solver, N, (w,), (N,), (0,))
    updates = -(-SOLVES * slots // batch)
    pairs = Pairs(teacher, teacher, group, batch, solves_in_flight=slots)
    spent = sum(b.evaluations for _, b in pairs.between(0, updates))
    n = sum(int(pairs.starts(u).n.sum()) for u in range(1, updates + 1))
    return spent / (n * get_solver(solver).evaluations * (1 if w == 1 else 2))


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
        teacher.accelerate(compile=False).freeze()
    images, labels = torch.randint(256, (512, *teacher.shape), dtype=torch.uint8), torch.arange(512) % 10
    return teacher, ImageSet(images, labels, images[:0], labels[:0], tuple("0123456789")).to(device)


class Meter:
    """Times ways of making pairs, each after a warm-up."""

    def __init__(self, report: Report, seconds: float, minimum: float, flops: float | None, rate: float):
        self.report, self.seconds, self.minimum, self.flops, self.rate = report, seconds, minimum, flops, rate

    def measure(self, name: str, pairs_of, warm_up: int = 1, *, at: float, flops=None) -> dict:
        """`pairs_of` yields the evaluations of its next pairs for ever; reports pairs and evaluations a second.

        at : the evaluations that a pair of the problem asked about costs, expected over its starting index: pairs a
        second follow from it, so chance in the few pairs timed is no part of them. flops : of an evaluation, where
        they are not those of the others.
        """
        device = self.report.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(warm_up):
            next(pairs_of)
        wait(device)
        warm = time.perf_counter() - began
        began, evaluations = time.perf_counter(), 0
        while time.perf_counter() - began < self.seconds or not evaluations:
            evaluations += next(pairs_of)
            wait(device)
        took = time.perf_counter() - began
        row = {
            "way": name, "pairs a second": evaluations / took / at, "teacher evaluations a pair": at,
            "over the minimum": at / self.minimum, "evaluations a second": evaluations / took,
            "warm-up [s]": warm, "timed [s]": took,
        }  # fmt: skip
        if flops or self.flops:
            row["share of matrix-product rate"] = evaluations / took * (flops or self.flops) / self.rate
        if device.type == "cuda":
            row["peak memory [GiB]"] = torch.cuda.max_memory_allocated() / GIB
            torch.cuda.empty_cache()
            row["memory held [GiB]"] = torch.cuda.memory_reserved() / GIB
        return self.report.add(row)


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
    arguments.add_argument("study", choices=("gmm", "digits", "cifar10", "sdxl"))
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--intervals", type=int, default=100)
    arguments.add_argument("--guidance", type=float, default=9.0)
    arguments.add_argument("--solver", default="ddim")
    arguments.add_argument("--solves-in-flight", "--slots", dest="slots", type=int, nargs="+", help="256, or 16 for sdxl")
    arguments.add_argument("--reuse", type=int, default=4)
    arguments.add_argument("--seconds", type=float, default=5.0, help="to time each way for")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out")
    arguments.add_argument("--coarse", type=int, default=4, help="intervals on which sdxl is timed")
    arguments.add_argument("--ways", nargs="+", default=["flight", "reuse", "profile", "fp8"], help="of sdxl, in order")
    arguments.add_argument("--unet", help="a UNet configuration (JSON) in place of SDXL's")
    given = arguments.parse_args()
    given.slots = given.slots or ([16] if given.study == "sdxl" else [256])

    device = find_device(given.device)
    ready_device(device, threads=1)
    report = Report(
        device,
        given.out,
        study=given.study,
        solver=given.solver,
        batch=given.batch,
        N=given.intervals,
        w=given.guidance,
    )
    if given.study == "sdxl":
        import targets_sdxl

        targets_sdxl.measure(report, given)
    else:
        small(report, given)
    report.print()


def small(report: Report, given) -> None:
    """Every way, at the size that is asked about."""
    device = report.device
    teacher, data = make_teacher(given.study, device)
    N, B, w = given.intervals, given.batch, given.guidance
    grid, group = Grid(N, teacher.schedule.T), Group(given.solver, N, (w,), (N,), (0,))
    rate, flops = matrix_rate(device), network_flops(teacher, device)
    report.note(**{"matrix products [TFLOP/s]": rate / 1e12, "GFLOP an evaluation": flops / 1e9 if flops else None})
    halves = 1 if w == 1 else 2
    stages = get_solver(given.solver).evaluations
    minimum = (N + 1) / 2 * halves * stages
    meter = Meter(report, given.seconds, minimum, flops, rate)

    def paper(batch: int):
        update = 0
        while True:
            update += 1
            s = Pairs(teacher, data, group, batch, device).starts(update)
            yield paper_loop(teacher, s.x, s.n, s.condition, w, given.solver, grid)[1]

    def ours(**settings):
        for _, batch in Pairs(teacher, data, group, B, device, **settings).between(0, 10**6):
            yield batch.evaluations

    # The same starting points must lead to the same targets, by either way.
    with report.way("targets compared"):
        flight = Pairs(teacher, data, group, B, device, updates_per_solve=4, solves_in_flight=given.slots[0])
        flying = [batch for _, batch in flight.between(0, 4)]
        plain = [batch for _, batch in replace(flight, solves_in_flight=0).between(0, 4)]
        report.note(**{"targets in flight against together": difference(
            torch.cat([a.x_hat for a in flying]), torch.cat([b.x_hat for b in plain]))})  # fmt: skip

    with report.way(f"paper's loop, batch {B}"):
        meter.measure(f"paper's loop, batch {B}", paper(B), at=2 * stages * longest_of(B, N))
    for slots in given.slots:
        if device.type == "cpu":
            with report.way(f"solved together, {slots // B} updates at a time"):
                name = f"solved together, {slots // B} updates at a time"
                meter.measure(name, ours(updates_per_solve=slots // B), slots // B, at=minimum)
        with report.way(f"in flight, {slots} slots"):
            over = scheduled_evaluations(given.solver, N, w, B, slots)
            # Until slots are in a steady state and, on a GPU, compiled and captured.
            meter.measure(f"in flight, {slots} slots", ours(solves_in_flight=slots), 1 + 3 * slots // B, at=over * minimum)
    together = given.slots[0] * given.reuse // B
    name = f"reused trajectories, {given.reuse} pairs each"
    with report.way(name):
        pairs = ours(pairs_per_trajectory=given.reuse, updates_per_solve=together)
        meter.measure(name, pairs, together, at=halves * stages * N / given.reuse)


if __name__ == "__main__":
    main()
