"""One-step students of a teacher that predicts noise on DDPM's linear schedule, whose alpha falls to 1/157.

    python benchmarks/small_alpha.py [--teacher 1500] [--updates 200] [--out FILE]

A tiny UNet on scikit-learn's digits is trained with that schedule (the one of google/ddpm-cifar10-32). Copies of it become
a CM and a Direct CM, each way with another ``least_alpha`` of :class:`dcm.consistency.ConsistencyFunction`; with 0 the
student is the network's own prediction. ODE errors in one step, by N = 10 intervals of DDIM; the teacher's own solutions
have the mean square in the heading.
"""

import argparse

import torch
from diffusers import DDPMScheduler
from report import Report

from dcm.consistency import ConsistencyFunction, sample
from dcm.data.images import digits
from dcm.horizon import Group
from dcm.metrics.metric import ode_error
from dcm.pairs import Pairs
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import ModuleStudents
from dcm.students.networks import UNetStudent
from dcm.support.processes import find_device, ready_device
from dcm.support.seeds import generator, sample_noise
from dcm.teachers.unet import PipelineConfig, UNetTeacher
from dcm.training.loop import distill
from dcm.training.settings import Settings

NETWORK = dict(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
               down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False, num_class_embeds=None)  # fmt: skip
GRID = Grid(10)


def trained(data, updates: int) -> UNetTeacher:
    """A teacher that has learnt to predict noise in so many updates of 64 images."""
    torch.manual_seed(0)
    teacher = UNetTeacher(PipelineConfig(NETWORK, tuple(map(float, DDPMScheduler().betas)), "epsilon", False))
    optimizer = torch.optim.Adam(teacher.parameters(), 3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=updates)
    for update in range(updates):
        g = generator("cpu", 0, "teacher", update)
        x, c = data.draw(g, 64)
        noise, t = torch.randn(x.shape, generator=g), torch.randint(1, 1001, (64,), generator=g)
        loss = (teacher.predict_noise(teacher.schedule.add_noise(x, noise, t), t, c) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        rate.step()
    return teacher.eval().requires_grad_(False)


def main() -> None:
    """Measure every way."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--teacher", type=int, default=1500, help="updates of the teacher")
    arguments.add_argument("--updates", type=int, default=200, help="of the students")
    arguments.add_argument("--least", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1, 0.2])
    arguments.add_argument("--out")
    given = arguments.parse_args()
    device = find_device("cpu")
    ready_device(device, threads=torch.get_num_threads())
    data = digits()
    teacher, group = trained(data, given.teacher), Group("ddim", GRID.intervals, (1.0,), (1, GRID.intervals), (0,))
    noise, c = sample_noise(0, "evaluation", range(256), teacher.shape), torch.zeros(256, dtype=torch.long)
    solution = solve(teacher, noise, GRID.intervals, c, 1.0, "ddim", GRID).x
    report = Report(device, given.out, study="digits", updates=given.updates, N=GRID.intervals)
    report.note(**{"mean square of the solutions": float(solution.square().mean())})
    for least in given.least:
        with report.way(f"least alpha {least:g}"):
            f = ConsistencyFunction(teacher.schedule, prediction="epsilon", least_alpha=least)
            students = ModuleStudents([UNetStudent(teacher.config) for _ in group.members])
            for network in students.networks:
                network.start_as(teacher.unet)
            error = lambda: [ode_error(x, solution) for x in sample(f, students, noise.expand(2, *noise.shape), c.expand(2, -1), GRID, [])]  # noqa: B023
            row = {"way": f"least alpha {least:g}", "ODE error at first": error()[0]}
            for _ in distill(Pairs(teacher, data, group, 32, updates_per_solve=10), students, Settings(given.updates, lr=3e-4), f):
                pass
            report.add(row | dict(zip(("CM after training", "Direct CM after training"), error())))
    report.print()


if __name__ == "__main__":
    main()
