"""Distilling a group to its end: averaging, snapshots, checkpoints, a progress bar."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcm.pairs import Pairs
from dcm.parameters.check import renamed
from dcm.parameters.notebooks import DistillParameters
from dcm.students.lockstep import Students
from dcm.studies.base import Study
from dcm.support.checkpoint import load_optimizer, optimizer_tensors, picked, prefixed, read_checkpoint
from dcm.support.errors import TrainingError, last_good
from dcm.support.files import project_path, write_tensors
from dcm.support.processes import ALONE, Processes
from dcm.support.progress import tqdm
from dcm.training.loop import State, check_finite, distill
from dcm.training.saved import DistilledGroup, load_group, snapshot_updates, students_path
from dcm.training.settings import Settings, make_optimizer

LOG_POINTS = 200  # points kept of each loss curve
SINCE = {"teacher_precision": "auto", "lora_rank": 0}  # parameters that older students lack, and what held then
MEMORY = ("processes", "gradient_checkpointing", "microbatch", "compiled")  # where and how it runs, not what
PLACE = ("checkpoint_seconds", "run_dir", "device", "threads")


def identity_of(parameters: DistillParameters, study: Study) -> dict:
    """What must be equal for a checkpoint to be gone on with."""
    return parameters.model_dump(exclude={*PLACE, *MEMORY}) | {"teacher": study.teacher_id}


def finished(parameters: DistillParameters, study: Study) -> DistilledGroup | None:
    """The group, where it was distilled to its end with these parameters before."""
    if not students_path(parameters.run_dir, parameters.group_name).exists():
        return None
    there = load_group(parameters.run_dir, parameters.group_name)
    return there if SINCE | renamed(there.about["identity"]) == identity_of(parameters, study) else None


@dataclass
class Progress:
    """How far a training has come: what a checkpoint holds.

    Attributes
    ----------
    averaged : the exponential moving average of the weights, or None.
    kept : weights at the snapshots, by ``update/name``.
    log, loss_sum : mean losses (M,) by window of updates, and the sum in the present one.
    reached : seconds of training by snapshot.
    """

    students: Students
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    loss_sum: Tensor
    kept: dict[str, Tensor] = field(default_factory=dict)
    log: list[Tensor] = field(default_factory=list)
    reached: dict[str, float] = field(default_factory=dict)
    update: int = 0
    evaluations: int = 0
    seconds: float = 0.0  # before this process
    began: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of training in all."""
        return self.seconds + time.monotonic() - self.began

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name."""
        empty = torch.zeros(0, len(self.loss_sum))
        return (
            prefixed("students", self.students.state_dict())
            | prefixed("optimizer", optimizer_tensors(self.optimizer))
            | (prefixed("averaged", self.averaged.state_dict()) if self.averaged else {})
            | prefixed("kept", self.kept)
            | {"log": torch.stack(self.log) if self.log else empty, "loss_sum": self.loss_sum}
        )

    def restore(self, tensors: dict[str, Tensor], about: dict) -> None:
        """Take over what a checkpoint held."""
        self.update, self.evaluations, self.seconds = about["update"], about["evaluations"], about["seconds"]
        self.reached = about.get("snapshot_seconds", {})
        self.students.load_state_dict(picked("students", tensors))
        load_optimizer(self.optimizer, picked("optimizer", tensors))
        if self.averaged:
            self.averaged.load_state_dict(picked("averaged", tensors))
        self.kept = {n: t.cpu() for n, t in picked("kept", tensors).items()}
        self.log, self.loss_sum = list(tensors["log"]), tensors["loss_sum"]

    def average(self) -> None:
        """Take the students' weights into the average."""
        if self.averaged is None:
            return
        if self.averaged.n_averaged == 0:
            self.averaged.update_parameters(self.students)  # takes the weights over
            return
        # What update_parameters does from then on, without its search through every network at each update.
        self.averaged.multi_avg_fn(
            list(self.averaged.module.parameters()), list(self.students.parameters()), self.averaged.n_averaged
        )
        self.averaged.n_averaged += 1

    def keep(self) -> None:
        """Keep the weights as they are."""
        model = self.averaged.module if self.averaged else self.students
        self.kept |= prefixed(str(self.update), {n: p.cpu().clone() for n, p in model.state_dict().items()})
        self.reached[str(self.update)] = self.elapsed

    @property
    def is_finite(self) -> bool:
        """Whether the students' weights are: a checkpoint is a good one."""
        return all(bool(p.isfinite().all()) for p in self.students.parameters())


class GroupTraining:
    """One group's training in this process; see :func:`train_group`."""

    def __init__(self, study: Study, parameters: DistillParameters, device: torch.device, processes: Processes):
        self.study, self.p, self.processes = study, parameters, processes
        self.group, self.settings = parameters.group(), Settings.of(parameters)
        self.final = students_path(parameters.run_dir, parameters.group_name)
        self.checkpoint = project_path(parameters.run_dir) / "checkpoints" / self.final.name
        self.snapshots = snapshot_updates(self.settings.updates, parameters.snapshots)
        self.window = max(1, self.settings.updates // LOG_POINTS)
        self.identity = identity_of(parameters, study)
        self.saved = 0  # the last update of which there is a checkpoint

        seeds = [m.seed for m in self.group.members]
        students = study.make_students(seeds, parameters.width, parameters.lora_rank).to(device)
        study.use_precision(parameters.teacher_precision)
        study.before_training(students, parameters, processes)
        optimizer = make_optimizer(students, self.settings)
        tensors, about = read_checkpoint(self.checkpoint, self.identity, device, study.costly)
        if not tensors:
            study.start_from_teacher(students, seeds, parameters.pretrain)
        average = get_ema_multi_avg_fn(parameters.ema) if parameters.ema else None
        averaged = AveragedModel(students, multi_avg_fn=average) if average else None
        self.progress = Progress(students, optimizer, averaged, torch.zeros(len(seeds), device=device))
        if tensors:
            self.progress.restore(tensors, about)
            self.saved = self.progress.update
            if processes.first:
                print(f"Going on after update {self.saved}.")
        self.pairs = Pairs(
            study.teacher, study.data, self.group, parameters.batch, device, parameters.updates_per_solve,
            parameters.solves_in_flight, parameters.pairs_per_trajectory, processes,
        )  # fmt: skip

    def save(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Write `tensors` with what they are of."""
        done = self.progress
        about = {
            "identity": self.identity, "update": done.update, "evaluations": done.evaluations, "seconds": done.elapsed,
            "parameters": self.p.model_dump(), "group": asdict(self.group), "snapshots": self.snapshots,
            "snapshot_seconds": done.reached, "log_window": self.window, "processes": self.processes.size,
        }  # fmt: skip
        write_tensors(path, tensors, about)

    def check(self, state: State) -> None:
        """Raise :class:`TrainingError`, with the last good checkpoint, for a loss that is not finite."""
        try:
            check_finite(state, self.group.members)
        except TrainingError as error:
            raise TrainingError(f"{error} {last_good(self.checkpoint, self.saved)}") from None

    def run(self) -> None:
        """Train to the end, with snapshots and checkpoints."""
        done, settings, last_saved = self.progress, self.settings, time.monotonic()
        bar = tqdm(
            total=settings.updates, initial=done.update, desc=f"distil {self.p.group_name}", unit="update",
            disable=not self.processes.first,
        )  # fmt: skip
        states = distill(
            self.pairs, done.students, settings, self.study.f, done.optimizer, done.update, done.evaluations
        )
        for state in states:
            done.update, done.evaluations = state.update, state.evaluations
            done.average()
            done.loss_sum += state.loss
            if state.update % self.window == 0:
                self.check(state)
                done.log.append((done.loss_sum / self.window).cpu())
                done.loss_sum.zero_()
            if state.update in self.snapshots:
                done.keep()
            due = time.monotonic() - last_saved > self.p.checkpoint_seconds and state.update < settings.updates
            # a checkpoint is a good one
            if self.processes.first and due and done.is_finite:
                self.save(self.checkpoint, done.tensors)
                self.saved, last_saved = state.update, time.monotonic()
            bar.update()
        bar.close()
        self.check(state)


def train_group(
    study: Study, parameters: DistillParameters, device: torch.device, processes: Processes = ALONE
) -> DistilledGroup:
    """Distil a group to its end, going on from a checkpoint where one of the same settings lies.

    Students that were finished with the same settings are not distilled again. A checkpoint is written every
    ``checkpoint_seconds`` and removed when the students are saved. Averaged weights (``ema``) are what is kept. Of
    several `processes`, each calls this. Raises what :func:`dcm.training.loop.distill` raises.
    """
    if done := finished(parameters, study):
        print("These students are distilled already.")
        return done
    training = GroupTraining(study, parameters, device, processes)
    training.run()
    study.use_precision("auto")
    if processes.first:
        training.save(training.final, training.progress.kept | {"loss": torch.stack(training.progress.log)})
        training.checkpoint.unlink(missing_ok=True)
        study.export(load_group(parameters.run_dir, parameters.group_name), device)
    processes.wait()
    return load_group(parameters.run_dir, parameters.group_name)
