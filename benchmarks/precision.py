"""What a lower precision of the frozen teacher does to its ODE solutions: the shipped cifar10 teacher, real weights.

    python benchmarks/precision.py [--intervals 100] [--guidance 2 9] [--samples 128] [--out FILE]

Solutions from the same noise to data, by every precision, against float32: mean squared difference over all elements,
relative to the variance of the float32 solutions. ``autocast`` is float32 weights under torch.autocast, ``bf16`` and
``fp8`` are what the options of :meth:`dcm.teachers.unet.UNetTeacher.freeze` make. Uncompiled: rates are for orientation.
"""

import argparse

import torch
from report import Report, timed
from targets import difference

from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.images.prepare import SHIPPED
from dcm.support.processes import find_device, ready_device
from dcm.support.seeds import sample_noise
from dcm.teachers.unet import UNetTeacher


def make(precision: str, device: torch.device) -> UNetTeacher:
    """The shipped teacher in one precision."""
    teacher = UNetTeacher.load(SHIPPED / "cifar10_teacher").to(device)
    if precision == "autocast":
        teacher.accelerate(compile=False)
    elif precision != "float32":
        teacher.freeze("fp8" if precision == "fp8" else "auto")
    return teacher


def main() -> None:
    """Measure every precision."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--intervals", type=int, default=100)
    arguments.add_argument("--guidance", type=float, nargs="+", default=[2.0, 9.0])
    arguments.add_argument("--samples", type=int, default=128)
    arguments.add_argument("--solver", default="ddim")
    arguments.add_argument("--seconds", type=float, default=1.0, help="to time each precision for")
    arguments.add_argument("--precisions", nargs="+", default=["float32", "autocast", "bf16", "fp8"])
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out")
    given = arguments.parse_args()
    device = find_device(given.device)
    ready_device(device, threads=torch.get_num_threads())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is the reference
    report = Report(device, given.out, study="cifar10", N=given.intervals, solver=given.solver, samples=given.samples)
    grid, shape = Grid(given.intervals), (3, 32, 32)
    x = sample_noise(0, "evaluation", range(given.samples), shape).to(device)
    c = torch.arange(given.samples, device=device) % 10
    t = torch.full((given.samples,), 500, device=device)
    reference: dict[float, torch.Tensor] = {}
    for precision in given.precisions:
        with report.way(precision), torch.no_grad():
            teacher = make(precision, device)
            row: dict = {"way": precision}
            for w in given.guidance:
                end = solve(teacher, x, given.intervals, c, w, given.solver, grid).x
                reference.setdefault(w, end)
                row[f"relative squared difference, w = {w:g}"] = difference(end, reference[w])
            each, _, _ = timed(device, lambda: teacher.predict_noise(x, t, c), given.seconds)
            report.add(row | {"evaluations a second": given.samples / each})
    report.print()


if __name__ == "__main__":
    main()
