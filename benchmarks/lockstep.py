"""How much faster a group of students trains in lockstep than its members one after the other.

    python benchmarks/lockstep.py [--out FILE]

Both ways run in this one process on the same teacher and train the same students (the tests show that they end with
the same weights). The baseline distils each student alone, as a loop over notebooks would.
"""

import argparse
import time

import torch
from report import Report

from dcm.horizon import Group
from dcm.pairs import Pairs
from dcm.studies.registry import load_study
from dcm.training.loop import distill
from dcm.training.settings import Settings

UPDATES, BATCH, TOGETHER = 24, 128, 8


def seconds(study, group: Group) -> float:
    """Wall time of `UPDATES` updates after a warm-up of one batch of solves."""
    students = study.make_students([m.seed for m in group.members], width=64)
    pairs = Pairs(study.teacher, study.data, group, BATCH, updates_per_solve=TOGETHER)
    steps = distill(pairs, students, Settings(updates=10**6, lr=2e-3), study.f)
    for _ in range(TOGETHER):
        next(steps)
    began = time.perf_counter()
    for _ in range(UPDATES):
        next(steps)
    return time.perf_counter() - began


def main() -> None:
    """Student updates a second of both ways, and their ratio."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    study = load_study("gmm", "unused", torch.device("cpu"))
    group = Group("ddim", 50, (2.0,), (1, 2, 5, 10, 25, 50), tuple(range(8)))
    students, updates = len(group.members), len(group.members) * UPDATES
    report = Report(
        torch.device("cpu"), given.out, study="gmm", students=students, batch=BATCH, N=50, solver="ddim"
    )
    alone = 0.0
    for horizon in group.horizons:  # one seed stands for the others: they cost the same
        alone += len(group.seeds) * seconds(study, Group("ddim", 50, (2.0,), (horizon,), (0,)))
    report.add({"way": "one by one", "student updates a second": updates / alone})
    report.add({"way": "lockstep", "student updates a second": updates / seconds(study, group)})
    report.print()


if __name__ == "__main__":
    main()
