"""Plumbing around :func:`dcm.distill.distill`: averaging, snapshots, checkpoints, resuming, a progress bar."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dcm.artifacts import read_tensors, write_tensors
from dcm.distill import State, check_finite, distill, make_optimizer
from dcm.errors import InputError, TrainingError, last_good
from dcm.evaluation import DistilledGroup, load_group, students_path
from dcm.parameters import DistillParameters
from dcm.progress import tqdm
from dcm.studies import Study
from dcm.team import ALONE, Team, launch

SINCE = {"teacher_precision": "auto", "lora_rank": 0}  # parameters that older checkpoints lack, and what held then
MEMORY = ("processes", "gradient_checkpointing", "microbatch", "compiled")  # where and how it runs, not what
LOG_POINTS = 200  # points kept of each loss curve


def snapshot_updates(updates: int, count: int) -> list[int]:
    """`count` updates evenly spaced in the logarithm from 1 % of the run on, and always the last."""
    early = np.geomspace(max(1, updates / 100), updates, count + 1)[:-1] if count else []
    return sorted({max(1, round(u)) for u in early} | {updates})


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def _picked(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items() if n.startswith(f"{prefix}/")}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state; a slot that is a plain number (8-bit Adam's step) gets a ``#`` to its name."""
    state = optimizer.state_dict()["state"]
    slots = [(f"{i}.{name}", v) for i, slots in state.items() for name, v in slots.items()]
    return {n if isinstance(v, Tensor) else f"{n}#": torch.as_tensor(v) for n, v in slots}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, t in tensors.items():
        i, slot = name.split(".", 1)
        state.setdefault(int(i), {})[slot.removesuffix("#")] = t.item() if slot.endswith("#") else t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _identity(parameters: DistillParameters, study: Study) -> dict:
    """What must be equal for a checkpoint to be gone on with."""
    free = {"checkpoint_seconds", "run_dir", "device", "threads", *MEMORY}
    return parameters.model_dump(exclude=free) | {"teacher": study.teacher_id}


def _read_checkpoint(
    path: Path, identity: dict, device: torch.device, costly: bool = False
) -> tuple[dict[str, Tensor], dict]:
    """The checkpoint's (tensors, about) when it is whole and of the same settings, else nothing; says why.

    A `costly` one of other settings is not thrown away: raises :class:`InputError`.
    """
    if not path.exists():
        return {}, {}
    try:
        tensors, about = read_tensors(path, device)
    except InputError as damaged:
        print(f"{damaged} Starting anew.")
        return {}, {}
    about["identity"] = SINCE | about["identity"]
    differ = [k for k in identity if about["identity"].get(k) != identity[k]]
    if differ and costly:
        each = ", ".join(f"{k} = {about['identity'].get(k)!r} there and {identity[k]!r} here" for k in differ)
        raise InputError(
            f"{path} is from other settings ({each}); set them as they were to go on with it, choose another run_dir or "
            "group_name, or delete it to start anew."
        )
    if differ:
        print(f"The checkpoint is from other settings ({', '.join(differ)}); starting anew.")
        return {}, {}
    return tensors, about


def train_group(
    study: Study, parameters: DistillParameters, device: torch.device, team: Team | None = None
) -> DistilledGroup:
    """Distil a group to its end, going on from a checkpoint where one of the same settings lies.

    Students that were finished with the same settings are not distilled again.

    A checkpoint is written every ``checkpoint_seconds`` and removed when the students are saved. Averaged weights
    (``ema``) are what is kept. With ``processes`` above 1 this process starts them and waits; each of them calls this
    with its `team`. Raises what :func:`dcm.distill.distill` raises.
    """
    group, settings = parameters.group(), parameters.settings()
    final = students_path(parameters.run_dir, parameters.group_name)
    checkpoint = Path(parameters.run_dir) / "checkpoints" / final.name
    identity = _identity(parameters, study)
    if final.exists():
        finished = load_group(parameters.run_dir, parameters.group_name)
        if SINCE | finished.about["identity"] == identity:
            print("These students are distilled already.")
            return finished
    if parameters.processes > 1 and team is None:
        study.to(torch.device("cpu"))  # the processes need the memory
        launch(parameters)
        study.to(device)
        return load_group(parameters.run_dir, parameters.group_name)
    team = team or ALONE

    seeds = [m.seed for m in group.members]
    students = study.make_students(seeds, parameters.width, parameters.lora_rank).to(device)
    study.use_precision(parameters.teacher_precision)
    study.before_training(students, parameters, team)
    optimizer = make_optimizer(students, settings)
    kept: dict[str, Tensor] = {}
    reached: dict[str, float] = {}  # seconds of training by snapshot
    log: list[Tensor] = []
    start, evaluations, seconds = 0, 0, 0.0
    tensors, about = _read_checkpoint(checkpoint, identity, device, study.costly)
    if not tensors:
        study.start_from_teacher(students, seeds, parameters.pretrain)
    average = get_ema_multi_avg_fn(parameters.ema) if parameters.ema else None
    averaged = AveragedModel(students, multi_avg_fn=average) if average else None
    if tensors:
        start, evaluations, seconds = about["update"], about["evaluations"], about["seconds"]
        reached = about.get("snapshot_seconds", {})
        students.load_state_dict(_picked("students", tensors))
        _load_optimizer(optimizer, _picked("optimizer", tensors))
        if averaged:
            averaged.load_state_dict(_picked("averaged", tensors))
        kept = _prefixed("kept", {n: t.cpu() for n, t in _picked("kept", tensors).items()})
        log = list(tensors["log"])
        if team.first:
            print(f"Going on after update {start}.")

    snapshots = snapshot_updates(settings.updates, parameters.snapshots)
    window = max(1, settings.updates // LOG_POINTS)
    loss_sum = tensors["loss_sum"] if start else torch.zeros(len(group.members), device=device)
    began = last_saved = time.monotonic()

    def about_now(update: int) -> dict:
        return {
            "identity": identity, "update": update, "evaluations": evaluations,
            "seconds": seconds + time.monotonic() - began, "parameters": parameters.model_dump(),
            "group": asdict(group), "snapshots": snapshots, "snapshot_seconds": reached, "log_window": window,
            "processes": team.size,
        }  # fmt: skip

    def check(state: State) -> None:
        try:
            check_finite(state, group.members)
        except TrainingError as error:
            raise TrainingError(f"{error} {last_good(checkpoint, saved)}") from None

    bar = tqdm(
        total=settings.updates, initial=start, desc=f"distil {parameters.group_name}", unit="update",
        disable=not team.first,
    )  # fmt: skip
    states = distill(study.teacher, study.data, students, group, settings, study.f, optimizer, start, evaluations, team)
    saved = start
    weights = [list(m.parameters()) for m in (averaged.module, students)] if averaged else []
    for state in states:
        evaluations = state.evaluations
        if averaged and state.update == 1:
            averaged.update_parameters(students)  # takes the weights over
        elif averaged and average:
            # What update_parameters does from then on, without its search through every network at each update.
            average(*weights, averaged.n_averaged)
            averaged.n_averaged += 1
        loss_sum += state.loss
        if state.update % window == 0:
            check(state)
            log.append((loss_sum / window).cpu())
            loss_sum.zero_()
        if state.update in snapshots:
            model = averaged.module if averaged else students
            kept |= _prefixed(f"kept/{state.update}", {n: p.cpu().clone() for n, p in model.state_dict().items()})
            reached[str(state.update)] = seconds + time.monotonic() - began
        due = time.monotonic() - last_saved > parameters.checkpoint_seconds and state.update < settings.updates
        # a checkpoint is a good one
        if team.first and due and all(bool(p.isfinite().all()) for p in students.parameters()):
            tensors = (
                _prefixed("students", students.state_dict())
                | _prefixed("optimizer", _optimizer_tensors(optimizer))
                | (_prefixed("averaged", averaged.state_dict()) if averaged else {})
                | kept
                | {"log": torch.stack(log) if log else torch.zeros(0, len(group.members)), "loss_sum": loss_sum}
            )
            write_tensors(checkpoint, tensors, about_now(state.update))
            saved, last_saved = state.update, time.monotonic()
        bar.update()
    bar.close()
    study.use_precision("auto")
    check(state)

    result = _picked("kept", kept) | {"loss": torch.stack(log)}
    if team.first:
        write_tensors(final, result, about_now(settings.updates))
        checkpoint.unlink(missing_ok=True)
        study.export(load_group(parameters.run_dir, parameters.group_name), device)
    team.wait()
    return load_group(parameters.run_dir, parameters.group_name)
