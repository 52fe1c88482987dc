"""Images with captions, encoded once: latents and embeddings as safetensors, so that training touches the UNet only."""

import csv
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcm.data.images import open_image
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, read_header, read_tensors, write_tensors
from dcm.support.progress import tqdm
from dcm.teachers.sdxl import Prompts

IMAGES = (".jpeg", ".jpg", ".png", ".webp")
SHARD = 64  # images a file: what an interrupted run may lose


def captioned_images(folder: str | Path) -> list[tuple[Path, str]]:
    """Images below `folder` with their captions, in the order of their paths.

    A caption stands in a ``.txt`` file of the image's name beside it, or in a ``metadata.jsonl`` or ``metadata.csv`` in
    its folder or above, with columns ``file_name`` (from there) and ``text`` (or ``caption``). Raises :class:`InputError`
    for a folder that has no images, for images that have no caption, and for what cannot be read.
    """
    folder = Path(folder)
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES) if folder.is_dir() else []
    if not images:
        raise InputError(f"{folder} holds no images; data_dir must be a folder with {', '.join(IMAGES)} files and captions.")
    listed = _metadata(folder)
    items = [(p, listed.get(p) or _beside(p.with_suffix(".txt"))) for p in images]
    if without := [p.relative_to(folder) for p, caption in items if not caption]:
        where = "a .txt file of the same name beside it, or in metadata.jsonl or metadata.csv (file_name, text)"
        first = f"{len(without)} of {len(items)} images in {folder} have no caption, {without[0]} the first"
        raise InputError(f"{first}; put it in {where}.")
    return items


def _beside(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig").strip() if path.exists() else ""
    except ValueError as error:
        raise InputError(f"{path} cannot be read ({error}); captions are UTF-8.") from None


def _metadata(folder: Path) -> dict[Path, str]:
    listed: dict[Path, str] = {}
    for path in sorted(p for p in folder.rglob("metadata.*") if p.suffix in (".jsonl", ".csv")):
        try:
            # Lines end at line feeds alone, and in a csv not within quotes: captions from the web have other separators.
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, filter(str.strip, file.read().split("\n")))
                listed |= {path.parent / row["file_name"]: (row.get("text") or row.get("caption") or "").strip() for row in rows}
        except KeyError:
            raise InputError(f"{path} must name each image in a column file_name, relative to {path.parent}.") from None
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise InputError(f"{path} cannot be read ({error}); each line must be one image.") from None
    return listed


def pixels(path: Path, resolution: int, g: torch.Generator, flip: bool) -> tuple[Tensor, tuple[int, ...]]:
    """An image (3, R, R) in [-1, 1] and its size ids, as the paper's code makes them.

    The shorter side is resized to R (bilinear), a square is cropped at random; ids are the original height and width,
    top and left of the crop, R and R.
    """
    from torchvision.transforms import v2
    from torchvision.transforms.functional import to_tensor

    image = open_image(path)
    x = to_tensor(v2.functional.resize(image, [resolution], interpolation=v2.InterpolationMode.BILINEAR))
    top, left = (int(torch.randint(n - resolution + 1, (), generator=g)) for n in x.shape[1:])
    x = x[:, top : top + resolution, left : left + resolution]
    if flip and bool(torch.rand((), generator=g) < 0.5):
        x = x.flip(-1)
    return 2 * x - 1, (image.height, image.width, top, left, resolution, resolution)


def marks(items: list[tuple[Path, str]]) -> list[tuple[str, int, str]]:
    """What images with captions are known by: name, size in bytes, caption."""
    return [(image.name, image.stat().st_size, caption) for image, caption in items]


def shard_rows(count: int) -> list[range]:
    """Which items lie in which file."""
    return [range(i, min(i + SHARD, count)) for i in range(0, count, SHARD)]


def cache(items: list[tuple[Path, str]], encoder: Callable[[], Any], identity: dict, folder: Path) -> None:
    """Encode all `items` into ``folder``/00000.safetensors, ..; files that are there, whole and of the same, are kept.

    `encoder` makes what has ``encode(rows, items)``, the tensors of a file, only when something is left to encode;
    `identity` is all that the result depends on but the images and captions themselves.
    """
    ready = functools.cache(encoder)
    for k, rows in enumerate(tqdm(shard_rows(len(items)), desc="encode images and captions", unit="file")):
        own, path = [items[i] for i in rows], folder / f"{k:05d}.safetensors"
        mark = fingerprint(identity, marks(own), list(rows))
        if read_header(path).get("mark") != mark:
            write_tensors(path, ready().encode(rows, own), {"mark": mark})


@dataclass(frozen=True)
class CachedLatents:
    """Encoded images as training data."""

    latents: Tensor  # (P, C, h, w) on the CPU
    prompts: Prompts  # of the same P images

    @property
    def held_out(self) -> Tensor:
        """No image is held out: the paper compares with the teacher's samples."""
        return self.latents[:0]

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Latents, with replacement: float32 (batch, C, h, w), and their prompts (batch,) under their own size ids."""
        i = torch.randint(len(self.latents), (batch,), generator=generator, device=generator.device)
        return self.latents[i.cpu()].float().to(generator.device), self.prompts.as_trained(i)

    @classmethod
    def load(cls, folder: Path, count: int) -> "CachedLatents":
        """What :func:`cache` left. Raises :class:`InputError` when a file is missing or damaged."""
        parts = [read_tensors(folder / f"{k:05d}.safetensors")[0] for k in range(len(shard_rows(count)))]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        if len(whole["latents"]) != count:
            raise InputError(f"{folder} holds {len(whole['latents'])} images, not {count}; run notebook 1 again.")
        return cls(whole["latents"], Prompts(whole["embeddings"], whole["pooled"], whole["size_ids"]))
