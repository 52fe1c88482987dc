"""The studies, and what each of them alone uses of the parameters of notebooks 1 and 2; all else is for every study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Used:
    """Names of parameters of notebook 1 (`teacher`) and 2 (`training`), and where the training `data` may come from."""

    teacher: frozenset[str]
    training: frozenset[str]
    data: tuple[str, ...] = ("builtin",)


_NETWORK = frozenset("pretrain lora_rank compiled teacher_precision".split())
_TRAINED = frozenset("seed updates batch lr".split())
_ELSEWHERE = frozenset("data data_dir download inception".split())
STUDIES = {
    "gmm": Used(frozenset({"dimension", "modes"}), frozenset({"pretrain", "width"})),
    "digits": Used(_TRAINED, _NETWORK),
    "cifar10": Used(_TRAINED | _ELSEWHERE | {"teacher_images"}, _NETWORK, ("cifar10", "folder", "teacher")),
    "sdxl": Used(
        _ELSEWHERE | set("seed batch model vae resolution flip precision clip dino aesthetic".split()),
        frozenset("width gradient_checkpointing microbatch teacher_precision".split()),
        ("folder",),
    ),
}


def not_used(study: str, notebook: str) -> set[str]:
    """Parameters of `notebook` (``teacher`` or ``training``) that other studies use and `study` does not."""
    every = set().union(*(getattr(used, notebook) for used in STUDIES.values()))
    return every - getattr(STUDIES[study], notebook)
