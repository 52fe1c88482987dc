"""Images as training data: scikit-learn's digits, CIFAR-10, any image folder, or a teacher's own samples."""

import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, read_header, read_tensors, tensors_digest, verify, write_tensors
from dcm.support.progress import tqdm
from dcm.support.seeds import sample_noise

HOW_TO_GET = (
    "`make study-cifar10 DOWNLOAD=1` fetches CIFAR-10 (170 MB), and so does notebook 1 with data = 'cifar10' and download "
    "= True; or name in data_dir a folder with one folder of images a class (data = 'folder')"
)
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"  # as keras publishes it


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in memory, in two fixed parts, one to train on and one held out for metrics."""

    train: Tensor  # (n, C, H, W) uint8, values 0 .. peak
    train_labels: Tensor  # (n,) int64, in [0, len(classes))
    held_out: Tensor
    held_out_labels: Tensor
    classes: tuple[str, ...]  # their names
    peak: int = 255  # the value of white
    flip: bool = False  # whether draw mirrors half of the images left to right

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def to(self, device: torch.device | str) -> "ImageSet":
        """A copy on `device`; draws need their generator there too."""
        return replace(self, **{name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)})

    def unit(self, images: Tensor) -> Tensor:
        """uint8 (n, C, H, W) to float32 in [-1, 1]."""
        return images.float() * (2 / self.peak) - 1

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Training images, with replacement: float32 (batch, C, H, W) in [-1, 1] and int64 (batch,)."""
        device = self.train.device
        index = torch.randint(len(self.train), (batch,), generator=generator, device=device)
        images = self.train[index]
        if self.flip:
            mirrored = torch.rand(batch, 1, 1, 1, generator=generator, device=device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        return self.unit(images), self.train_labels[index]

    def images(self, split: str = "held_out", count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first `count` (or all) images of a part, in random order: float32 (n, C, H, W) in [-1, 1], and labels (n,)."""
        return self.unit(getattr(self, split)[:count]), getattr(self, f"{split}_labels")[:count]


def shuffled(count: int) -> Tensor:
    """A fixed permutation: files sorted by class do not end up in one part."""
    return torch.from_numpy(np.random.default_rng(0).permutation(count))


def split(images: Tensor, labels: Tensor, held_out: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train, labels, held out, labels; the same `held_out` every time. Raises :class:`InputError` where none is left."""
    if not 0 <= held_out < (n := len(images)):
        raise InputError(f"held_out = {held_out} is out of range; allowed: 0 to {n - 1}, of {n} images.")
    held, kept = shuffled(len(images)).tensor_split([held_out])
    return images[kept], labels[kept], images[held], labels[held]


def digits(held_out: int = 500) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 and grey, 0..16; they come with the package."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.uint8))[:, None]
    parts = split(images, torch.from_numpy(data.target.astype(np.int64)), held_out)
    return ImageSet(*parts, classes=tuple(str(name) for name in data.target_names), peak=16)


def cifar10(folder: str | Path, download: bool = False) -> ImageSet:
    """CIFAR-10 as torchvision keeps it in `folder`; held out is its test set of 10,000.

    The archive is checked against its SHA-256 before anything in it is read, and torchvision checks each of its files.
    Raises :class:`InputError` when it is not there and `download` is off, or cannot be fetched.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import download_url

    archive = Path(folder) / CIFAR10.filename
    try:
        if download and not (Path(folder) / CIFAR10.base_folder).exists():
            download_url(CIFAR10.url, str(folder), CIFAR10.filename, CIFAR10.tgz_md5)
        if archive.exists():
            verify(archive, CIFAR10_SHA256)
        train, test = (CIFAR10(str(folder), train=part, download=download) for part in (True, False))
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"CIFAR-10 could not be read from {folder} ({reason}); {HOW_TO_GET}.") from error

    def ordered(data: CIFAR10) -> tuple[Tensor, Tensor]:
        order = shuffled(len(data.data))
        return torch.from_numpy(data.data).permute(0, 3, 1, 2)[order], torch.tensor(data.targets)[order]

    return ImageSet(*ordered(train), *ordered(test), classes=tuple(train.classes), flip=True)


def image_folder(
    folder: str | Path,
    shape: tuple[int, int, int] = (3, 32, 32),
    held_out: int = 5000,
    flip: bool = False,
    labelled: bool = True,
) -> ImageSet:
    """Any image folder with one subfolder a class, as torchvision has it; classes in alphabetical order.

    Every image must have the `shape` (C, H, W), where C is 1 (grey) or 3 (colour). The decoded images are kept beside the
    folder's classes as one safetensors file, named after what was read, so a second call is fast. A third of the images is
    held out, at most `held_out`. Not `labelled`, all images in it, however deep, are of one class.
    Raises :class:`InputError` for an empty folder, an image of another size, an unreadable file.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

    try:
        classes, index = find_classes(str(folder)) if labelled else (["image"], {"": 0})
        listing = make_dataset(str(folder), index, IMG_EXTENSIONS)
    except (FileNotFoundError, NotADirectoryError):
        needs = "one subfolder a class, each with at least one image" if labelled else "at least one image"
        raise InputError(f"{folder} is no image folder: it must hold {needs}; {HOW_TO_GET}.") from None
    found = [(path.removeprefix(str(folder)), os.stat(path)) for path, _ in listing]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]
    cache = Path(folder) / f".decoded-{fingerprint(facts, shape)}.safetensors"
    if cache.exists():
        images = read_tensors(cache)[0]["images"]
    else:
        images = torch.stack([_read_image(path, shape) for path, _ in tqdm(listing, desc="reading images", unit="image")])
        with suppress(InputError, OSError, SafetensorError):  # a full or read-only disk costs only the next call's speed
            write_tensors(cache, {"images": images})
    parts = split(images, torch.tensor([label for _, label in listing]), min(held_out, len(images) // 3))
    return ImageSet(*parts, classes=tuple(classes), flip=flip)


def open_image(path: str | Path, mode: str = "RGB"):
    """An image file as PIL has it; raises :class:`InputError`."""
    try:
        with Image.open(path) as image:
            deep = image.mode.startswith("I")  # 16 bits, which PIL would clip to 8
            return (image.convert("I").point(lambda v: v / 256).convert("L") if deep else image).convert(mode)
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}); remove or replace it, and run again.") from None


def _read_image(path: str, shape: tuple[int, int, int]) -> Tensor:
    from torchvision.transforms.functional import pil_to_tensor

    channels, height, width = shape
    image = open_image(path, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        raise InputError(f"{path} is {image.width} x {image.height} pixels, and the teacher needs {width} x {height}.")
    return pil_to_tensor(image)


def teacher_samples(teacher, count: int, intervals: int = 50, chunk: int = 500, kept: Path | None = None) -> ImageSet:
    """Unguided samples of an image teacher by DDIM, in place of data: for those who have its weights but no images.

    None is held out, where metrics would take it for real. Sample i has class i mod num_classes, and noise of its own.
    They are taken from the file `kept`, where it is of this teacher, and else written there.
    """
    device = next(teacher.parameters()).device
    condition, grid = torch.arange(count) % teacher.num_classes, Grid(intervals, teacher.schedule.T)
    of = {"weights": tensors_digest({n: v.cpu() for n, v in teacher.state_dict().items()}), "count": count, "N": intervals}
    known = read_header(kept) == of if kept else False
    images = read_tensors(kept)[0]["images"] if kept and known else _sampled(teacher, condition.to(device), grid, chunk)
    if kept and not known:
        write_tensors(kept, {"images": images}, of)
    return ImageSet(*split(images, condition, 0), classes=tuple(map(str, range(teacher.num_classes))))


def _sampled(teacher, condition: Tensor, grid: Grid, chunk: int) -> Tensor:
    parts: list[Tensor] = []
    for c in tqdm(condition.split(chunk), desc="teacher samples", unit="batch"):
        rows = range(len(parts) * chunk, len(parts) * chunk + len(c))
        x = sample_noise(0, "teacher", rows, teacher.shape).to(c.device)
        parts.append(solve(teacher, x, grid.intervals, c, 1.0, "ddim", grid).x.cpu())
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
