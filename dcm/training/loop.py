"""Distillation as a generator: one state after every update."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Member
from dcm.pairs import Pairs
from dcm.students.lockstep import Students
from dcm.support.errors import InputError, TrainingError
from dcm.training.settings import Settings, learning_rate, make_optimizer
from dcm.training.update import PAPERS, Objective, Update


@dataclass
class State:
    """What :func:`distill` yields after each update; the caller owns logging, EMA, checkpoints and stopping."""

    update: int
    students: Students
    optimizer: torch.optim.Optimizer
    loss: Tensor  # (M,), of this update
    evaluations: int  # teacher evaluations so far
    restarted: bool = False  # whether the optimiser began anew with this update, after a switch


def distill(
    pairs: Pairs,
    students: Students,
    settings: Settings,
    f: ConsistencyFunction,
    optimizer: torch.optim.Optimizer | None = None,
    start: int = 0,
    evaluations: int = 0,
    objective: Objective = PAPERS,
) -> Iterator[State]:
    """Train a group of students, yielding a :class:`State` after every update.

    Parameters
    ----------
    pairs : what they train on.
    students : on the device of the pairs, members in the order of ``pairs.group.members``.
    settings : how they train.
    f : the consistency function.
    optimizer, start, evaluations : from a checkpoint, to go on after update number `start`; the run then equals
        one that was never interrupted, bit for bit, and with solves in flight up to rounding: an ODE may be in another
        slot.
    objective : what is minimised.

    Raises :class:`InputError` for another number of students than the group has.
    """
    group = pairs.group
    if students.size != len(group.members):
        raise InputError(f"{students.size} students were given for a group of {len(group.members)}.")
    optimizer = optimizer or make_optimizer(students, settings)
    make = Update(students, optimizer, settings, f, pairs.processes, objective)
    switches = group.switches(settings.updates)
    for update, batch in pairs.between(start, settings.updates):
        if restarted := settings.at_switch == "restart" and update - 1 in switches:
            optimizer = make_optimizer(students, settings)
            make = Update(students, optimizer, settings, f, pairs.processes, objective)
        elif update - 1 in switches:
            still = {str(who) for who, _ in batch.stage.followers}
            for who, whom in group.stage(update - 1, settings.updates).followers:
                if str(who) not in still:
                    students.follow(who, whom, optimizer)
        evaluations += pairs.processes.total(batch.evaluations)
        loss = make(batch, learning_rate(settings, update))
        yield State(update, students, optimizer, loss, evaluations, restarted)


def check_finite(state: State, members: Sequence[Member]) -> None:
    """Raise :class:`TrainingError` naming the update and the student whose loss is not finite.

    Left to the caller, once every few updates: reading a loss makes a GPU wait.
    """
    bad = torch.nonzero(~state.loss.isfinite()).flatten().tolist()
    if bad:
        m = members[bad[0]]
        raise TrainingError(
            f"the loss of the student with horizon {m.horizon}, guidance {m.guidance:g}, seed {m.seed} is not finite at "
            f"update {state.update}; lower lr, or use loss = 'huber' or a smaller guidance."
        )
