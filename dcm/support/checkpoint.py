"""Checkpoints of a training, a teacher's or students': what they hold, and whether one may be gone on with."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dcm.support.errors import InputError
from dcm.support.files import read_tensors


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with ``prefix/`` before their names."""
    return {f"{prefix}/{name}": t for name, t in tensors.items()}


def picked(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of :func:`prefixed`, by their own names."""
    return {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items() if n.startswith(f"{prefix}/")}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, copied to the CPU, by names with dots between a slot and what it holds in turn.

    8-bit Adam's slots do, and share a table, which a file must hold for each. A plain number gets a ``#`` to its name.
    """

    def named(slots: dict, before: str = "") -> Iterator[tuple[str, Tensor]]:
        for slot, v in slots.items():
            if isinstance(v, dict):
                yield from named(v, f"{before}{slot}.")
            elif isinstance(v, Tensor):
                yield f"{before}{slot}", v.to("cpu", copy=True)
            else:
                yield f"{before}{slot}#", torch.as_tensor(v)

    return dict(named(optimizer.state_dict()["state"]))


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimiser the state that :func:`optimizer_tensors` took."""
    state: dict[int, dict] = {}
    for name, t in tensors.items():
        i, *within, slot = name.split(".")
        slots = state.setdefault(int(i), {})
        for outer in within:
            slots = slots.setdefault(outer, {})
        slots[slot.removesuffix("#")] = t.item() if slot.endswith("#") else t
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def read_checkpoint(path: Path, identity: dict, device: torch.device, costly: bool = False) -> tuple[dict, dict]:
    """The checkpoint's (tensors, about) when it is whole and of the same `identity`, else two empty ones; says why.

    A `costly` one of another identity is not thrown away: raises :class:`InputError`.
    """
    if not path.exists():
        return {}, {}
    try:
        tensors, about = read_tensors(path, device)
    except InputError as damaged:
        print(f"{damaged} Starting anew.")
        return {}, {}
    there = about.get("identity", {})
    differ = [k for k in identity if there.get(k) != identity[k]]
    if not differ:
        return tensors, about
    if costly:
        each = ", ".join(f"{k} = {there.get(k)!r} there and {identity[k]!r} here" for k in differ)
        ways = "set them as they were to go on with it, choose another run_dir or group_name, or delete it to start anew"
        raise InputError(f"{path} is from other settings ({each}); {ways}.")
    print(f"The checkpoint is from other settings ({', '.join(differ)}); starting anew.")
    return {}, {}
