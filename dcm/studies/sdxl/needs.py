"""What notebook 1 of SDXL needs: what is here, where the rest was looked for, and what is done without it."""

from collections.abc import Callable
from pathlib import Path

from dcm.data.captions import captioned_images
from dcm.metrics.encoders import INCEPTION_FILE
from dcm.support.errors import InputError
from dcm.support.files import project_path
from dcm.support.pretrained import locate


def _inception(how: str) -> Path:
    if how == "off" or not (how == "download" or INCEPTION_FILE.exists()):
        raise InputError(f"inception = {how!r}: Inception's weights are looked for at {INCEPTION_FILE}, or fetched with 'download'.")
    return INCEPTION_FILE


def _file(path: Path) -> Path:
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    return path


def survey(p) -> tuple[Path, list[tuple[Path, str]]]:
    """The pipeline's folder, and the images with their captions (none where the teacher draws its own data).

    Prints a line for everything that `p`, notebook 1's parameters, names: where it is, or where it was looked for and what
    will be missing. Raises :class:`InputError`, the first sentence of them, where what cannot be done without is missing.
    """
    fetched = lambda name: lambda: locate(getattr(p, name), name, p.download)
    asked: dict[str, tuple[Callable, str]] = {
        "model": (lambda: locate(p.model, "model", p.download, pipeline=True, low=p.precision != "fp32"), ""),
        "vae": (fetched("vae"), ""), "data_dir": (lambda: captioned_images(project_path(p.data_dir)), ""),
        "inception": (lambda: _inception(p.inception), "no FID"), "dino": (fetched("dino"), "no FD-DINOv2"),
        "clip": (fetched("clip"), "no CLIP and aesthetic scores"),
        "aesthetic": (lambda: _file(project_path(p.aesthetic)), "no aesthetic score"),
    }  # fmt: skip
    unused = {"vae": p.vae == "of the model", "data_dir": p.data == "teacher"}
    unused |= {name: getattr(p, name) == "none" for name in ("dino", "clip", "aesthetic")}
    found, lacking = {}, []
    for name, (look, without) in asked.items():
        if unused.get(name):
            continue
        try:
            found[name] = look()
        except InputError as why:
            lacking += [] if without else [why]
            print(f"{name:>9}: {why}" + (f" Without it: {without}." if without else " Nothing works without it."))
        else:
            print(f"{name:>9}: {f'{len(found[name])} images' if name == 'data_dir' else found[name]}")
    if lacking:
        raise lacking[0]
    return found["model"], found.get("data_dir", [])
