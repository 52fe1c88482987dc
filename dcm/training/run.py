"""Distilling a group to its end: averaging, snapshots, checkpoints, a progress bar."""

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dcm.pairs import Pairs
from dcm.parameters.notebooks import DistillParameters
from dcm.studies.base import Study
from dcm.support.checkpoint import load_optimizer, optimizer_tensors, picked, prefixed, read_checkpoint
from dcm.support.errors import InputError, TrainingError, last_good
from dcm.support.files import project_path, write_tensors
from dcm.support.processes import ALONE, Processes, peak_gib
from dcm.support.progress import tqdm
from dcm.training.loop import State, check_finite, distill
from dcm.training.saved import DistilledGroup, load_group, snapshot_updates, students_path
from dcm.training.settings import Settings, make_optimizer
from dcm.training.update import PAPERS, Objective

LOG_POINTS = 200  # points kept of each loss curve
MEMORY = ("processes", "gradient_checkpointing", "microbatch", "compiled")  # where and how it runs, not what
SAMPLING = ("samples", "evaluation_seed", "steps")  # what is sampled afterwards
PLACE = ("checkpoint_seconds", "run_dir", "device", "threads")


def identity_of(parameters: DistillParameters, study: Study) -> dict:
    """What must be equal for a checkpoint to be gone on with."""
    return parameters.model_dump(exclude={*PLACE, *MEMORY, *SAMPLING}) | {"teacher": study.teacher_id}


def finished(parameters: DistillParameters, study: Study) -> DistilledGroup | None:
    """The group, where it was distilled to its end with these parameters before; a damaged file counts as none.

    Raises :class:`InputError` for a damaged file of a costly study, which is not replaced unasked.
    """
    if not students_path(parameters.run_dir, parameters.group_name).exists():
        return None
    try:
        there = load_group(parameters.run_dir, parameters.group_name)
    except InputError as damaged:
        if study.costly:
            raise
        print(f"{damaged} Distilling anew.")
        return None
    return there if there.about["identity"] == identity_of(parameters, study) else None


class GroupTraining:
    """One group's training in this process; see :func:`train_group`. A checkpoint holds how far it has come."""

    def __init__(
        self, study: Study, p: DistillParameters, device: torch.device, processes: Processes, objective: Objective
    ):
        self.study, self.p, self.processes, self.objective = study, p, processes, objective
        self.group, self.settings, self.identity = p.group(), Settings.of(p), identity_of(p, study)
        self.final = students_path(p.run_dir, p.group_name)
        self.checkpoint = project_path(p.run_dir) / "checkpoints" / self.final.name
        # Where one objective follows another, and not at every step of ``anneal``.
        pairs = tuple(h for h in self.group.horizons if not isinstance(h, int) and len(h) == 2)
        switches = replace(self.group, horizons=pairs).switches(p.updates)
        self.snapshots = sorted({*snapshot_updates(p.updates, p.snapshots), *switches})
        self.window = max(1, p.updates // LOG_POINTS)
        self.update = self.evaluations = self.saved = 0  # the last: of which there is a checkpoint
        self.averaged: dict[str, Tensor] = {}  # the moving average of the `weights`, by name; both empty without one
        self.kept: dict[str, Tensor] = {}  # weights at the snapshots, by ``update/name``
        self.began, seeds = time.monotonic(), [m.seed for m in self.group.members]
        self.log: list[Tensor] = []  # mean losses (M,) by window of updates
        self.loss_sum = torch.zeros(len(seeds), device=device)  # in the present one
        self.students = study.make_students(seeds, p.width, p.lora_rank).to(device)
        study.use_precision(p.teacher_precision)
        study.before_training(self.students, p, processes)
        self.optimizer = make_optimizer(self.students, self.settings)
        # Found once: a search through every network at each update takes time.
        self.weights = {n: w.detach() for n, w in self.students.named_parameters() if w.requires_grad} if p.ema else {}
        self.take_over = get_ema_multi_avg_fn(p.ema)
        tensors, about = read_checkpoint(self.checkpoint, self.identity, device, study.costly)
        if tensors:
            self.restore(tensors, about)
        else:
            study.start_from_teacher(self.students, seeds, p.pretrain)
        self.pairs = Pairs(
            study.teacher, study.data, self.group, p.batch, device, p.updates_per_solve, p.solves_in_flight,
            p.pairs_per_trajectory, processes, p.updates,
        )  # fmt: skip

    def restore(self, tensors: dict[str, Tensor], about: dict) -> None:
        """Go on from what a checkpoint holds."""
        self.update, self.evaluations = about["update"], about["evaluations"]
        self.began, self.saved = self.began - about["seconds"], self.update
        self.students.load_state_dict(picked("students", tensors))
        load_optimizer(self.optimizer, picked("optimizer", tensors))
        self.averaged = picked("averaged", tensors)
        self.kept = {n: t.cpu() for n, t in picked("kept", tensors).items()}
        self.log, self.loss_sum = list(tensors["log"].cpu()), tensors["loss_sum"]
        if self.processes.first:
            print(f"Going on after update {self.saved}.")

    def save(self) -> None:
        """Write a checkpoint; of several processes the first does, and none of weights that are not finite."""
        if not (self.processes.first and all(bool(p.isfinite().all()) for p in self.students.parameters())):
            return
        log = torch.stack(self.log) if self.log else torch.zeros(0, len(self.loss_sum))
        self.write(
            self.checkpoint,
            prefixed("students", self.students.state_dict())
            | prefixed("optimizer", optimizer_tensors(self.optimizer))
            | prefixed("averaged", self.averaged)
            | prefixed("kept", self.kept)
            | {"log": log, "loss_sum": self.loss_sum},
        )
        self.saved = self.update

    def write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Write `tensors` with what they are of."""
        about = {
            "identity": self.identity, "update": self.update, "evaluations": self.evaluations, "seconds": time.monotonic() - self.began,
            "parameters": self.p.model_dump(), "group": asdict(self.group), "snapshots": self.snapshots,
            "log_window": self.window, "processes": self.processes.size, "peak_gib": peak_gib(self.loss_sum.device),
        }  # fmt: skip
        write_tensors(path, tensors, about)

    def average(self, restarted: bool) -> None:
        """Take the students' weights into the average, which begins anew where the optimiser does."""
        if self.averaged and not restarted:
            self.take_over([self.averaged[n] for n in self.weights], [*self.weights.values()], 0)
        else:
            self.averaged = {n: p.clone() for n, p in self.weights.items()}

    def keep(self) -> None:
        """Keep the weights, averaged where they are, as they are now."""
        state = self.students.state_dict() | self.averaged
        self.kept |= prefixed(str(self.update), {n: p.cpu().clone() for n, p in state.items()})

    def check(self, state: State) -> None:
        """Raise :class:`TrainingError`, with the last good checkpoint, for a loss that is not finite."""
        try:
            check_finite(state, self.group.members)
        except TrainingError as error:
            raise TrainingError(f"{error} {last_good(self.checkpoint, self.saved)}") from None

    def run(self) -> None:
        """Train to the end, with snapshots and checkpoints."""
        end, last_saved = self.settings.updates, time.monotonic()
        bar = tqdm(
            total=end, initial=self.update, desc=f"distil {self.p.group_name}", unit="update",
            disable=not self.processes.first,
        )  # fmt: skip
        states = distill(
            self.pairs, self.students, self.settings, self.study.f, self.optimizer, self.update, self.evaluations,
            self.objective,
        )  # fmt: skip
        for state in states:
            self.update, self.evaluations, self.optimizer = state.update, state.evaluations, state.optimizer
            self.average(state.restarted)
            self.loss_sum += state.loss
            if state.update % self.window == 0:
                self.check(state)
                self.log.append((self.loss_sum / self.window).cpu())
                self.loss_sum.zero_()
            if state.update in self.snapshots:
                self.keep()
            if time.monotonic() - last_saved > self.p.checkpoint_seconds and state.update < end:
                self.save()
                last_saved = time.monotonic()
            bar.update()
        bar.close()
        self.check(state)


def train_group(
    study: Study,
    parameters: DistillParameters,
    device: torch.device,
    processes: Processes = ALONE,
    objective: Objective = PAPERS,
) -> DistilledGroup:
    """Distil a group to its end, going on from a checkpoint where one of the same settings lies.

    Students that were finished with the same settings are not distilled again. A checkpoint is written every
    ``checkpoint_seconds``; the last one stays until the students are sampled, since Snakemake deletes what a rule that
    failed had made. Averaged weights (``ema``) are what is kept. Of
    several `processes`, each calls this. Another `objective` than the paper's wants a ``group_name`` of its own. Raises what :func:`dcm.training.loop.distill` raises.
    """
    if done := finished(parameters, study):
        print("These students are distilled already.")
        return done
    training = GroupTraining(study, parameters, device, processes, objective)
    training.run()
    study.use_precision("auto")
    if processes.first:
        training.write(training.final, training.kept | {"loss": torch.stack(training.log)})
        study.export(load_group(parameters.run_dir, parameters.group_name), device)
    processes.wait()
    return load_group(parameters.run_dir, parameters.group_name)
