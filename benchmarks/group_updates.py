"""Updates a second of a group of image students on a GPU, their targets given.

    python benchmarks/group_updates.py digits|cifar10 [--students 6] [--batch 32] [--out FILE]

The baseline evaluates one student after the other, in one CUDA graph. Ours makes each a branch of that graph, so that
small batches share the device, and compiles the networks where ``compiled`` asks for it (all have one compiled code).
Half of the students are CMs, which cost one evaluation more, half Direct CMs. On a CPU there are no graphs, so the ways
differ by nothing.
"""

import argparse
import time
from dataclasses import fields, replace

import torch
from report import Report, timed, wait
from targets import make_teacher
from torch import Tensor
from updates import make_students

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Batch, Group
from dcm.pairs import Pairs
from dcm.students.lockstep import ModuleStudents
from dcm.support.cuda_graph import Replay
from dcm.support.processes import find_device, ready_device
from dcm.training.settings import Settings, make_optimizer
from dcm.training.update import Update

INTERVALS = 10
WAYS = (("one after the other", False, False), ("side by side", True, False), ("one after the other, compiled", False, True),
        ("side by side, compiled", True, True))  # fmt: skip


class InTurn(ModuleStudents):
    """Students whose evaluations follow one another, in a graph too."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, members: slice = slice(None)) -> Tensor:
        """Raw network output, (M, B, *shape)."""
        return torch.stack([network(*row) for network, *row in zip(self.networks[members], x, t, condition)])


def batch_of(teacher, data, students: int, batch: int, device: torch.device) -> Batch:
    """One update's draws, the same for every CM and for every Direct CM."""
    group = Group("ddim", INTERVALS, (2.0,), (1, INTERVALS), (0,))
    [drawn] = Pairs(teacher, data, group, batch, device).solved([1])
    of = [0] * (students // 2) + [1] * (students - students // 2)
    tensors = {f.name: getattr(drawn, f.name)[of] for f in fields(Batch) if isinstance(getattr(drawn, f.name), Tensor)}
    stage = replace(drawn.stage, trained=(slice(0, students),), bootstrapped=(slice(0, students // 2),))
    return replace(drawn, stage=stage, **tensors)


def main() -> None:
    """Student updates a second of every way, and their ratio to the baseline's."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("study", choices=("digits", "cifar10"))
    arguments.add_argument("--students", type=int, default=6)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--seconds", type=float, default=3.0, help="to time each way for")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out")
    given = arguments.parse_args()
    device = find_device(given.device)
    ready_device(device, threads=1)
    M, B = given.students, given.batch
    report = Report(device, given.out, study=given.study, students=M, batch=B, N=INTERVALS, w=2, solver="ddim")
    teacher, data = make_teacher(given.study, device)
    batch, f = batch_of(teacher, data, M, B, device), ConsistencyFunction(teacher.schedule)
    settings = Settings(updates=1, lr=1e-6)
    for name, side_by_side, compiled in WAYS:
        with report.way(name):
            students = make_students(teacher, M)
            students = (students if side_by_side else InTurn(students.networks)).to(device)
            if compiled and device.type == "cuda":
                for network in students.networks:
                    network.compiled = True
            update = Update(students, make_optimizer(students, settings), settings, f)
            began = time.perf_counter()
            for _ in range(Replay.WARM_UP + 1):
                update(batch, settings.lr)
            wait(device)
            warm = time.perf_counter() - began
            each, calls, _ = timed(device, lambda: update(batch, settings.lr), given.seconds)
            report.add({"way": name, "student updates a second": M / each, "ms an update of the group": 1e3 * each,
                        "warm-up [s]": warm, "calls": calls})  # fmt: skip
    report.print()


if __name__ == "__main__":
    main()
