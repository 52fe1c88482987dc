"""Files that a run leaves: written whole or not at all, row by row where that takes long, and checked when read."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcm.support.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def project_path(path: str | Path) -> Path:
    """A relative path counts from the repository's root, wherever the notebook's kernel was started."""
    return Path(path) if Path(path).is_absolute() else ROOT / path


WRITTEN: list[Path] = []  # what this process wrote, in order; a notebook ends by naming it
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, used-up quota, largest file allowed


@contextmanager
def space_for(path: Path) -> Iterator[None]:
    """Raise :class:`InputError` when the block cannot write `path` for want of space."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors has the system's error number in its text alone: "(os error 28)", in old versions "Os { code: 28".
        number = re.search(r"(?:os error |Os \{ code: )(\d+)", str(error))
        if (int(number[1]) if number else getattr(error, "errno", None)) in NO_SPACE:
            raise InputError(f"no space is left on the disk to write {path}; free some and run again.") from None
        raise


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well; raises :class:`InputError` for a full disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    with space_for(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # a link of this name would lead elsewhere
        try:
            yield temporary
            os.replace(temporary, path)
            WRITTEN.append(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def write_json(path: str | Path, value) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table atomically, numbers with 6 significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Raise :class:`InputError` when the block cannot make sense of what `path` holds."""
    try:
        yield
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and run the notebook that writes it again.") from None


def read_json(path: Path) -> dict:
    """What :func:`write_json` wrote. Raises :class:`InputError` for a damaged file."""
    with undamaged(path):
        return json.loads(path.read_text())


def tensors_digest(tensors: dict[str, Tensor], text: str = "") -> str:
    """SHA-256 over `text` and the names, types, shapes and values of tensors on the CPU."""
    digest = hashlib.sha256(text.encode())
    for name, t in sorted(tensors.items()):
        digest.update(f"{name} {t.dtype} {tuple(t.shape)} ".encode())
        digest.update(t.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: str | Path, tensors: dict[str, Tensor], about: dict | None = None) -> None:
    """Write tensors as safetensors, atomically, with `about` as JSON in the file's own header, and a checksum of both."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(about or {})
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"about": text, "sha256": tensors_digest(tensors, text)})


def read_header(path: Path) -> dict:
    """The `about` of :func:`write_tensors` alone; an empty one for a file that is missing, cut short or foreign."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {}).get("about", "{}"))
    except (OSError, SafetensorError, ValueError):
        return {}


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict]:
    """What :func:`write_tensors` wrote: (tensors, about). Raises :class:`InputError` for a missing or damaged file."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist; run the notebook that writes it first.")
    with undamaged(path):
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors, text = {name: file.get_tensor(name) for name in file.keys()}, header.get("about", "{}")
        if "sha256" in header and header["sha256"] != tensors_digest(tensors, text):
            raise ValueError("its checksum does not fit its content")
        return {name: t.to(device) for name, t in tensors.items()}, json.loads(text)


def kept_tensors(path: Path, mark: str, make: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """The tensors in `path`; made where there are none, or damaged ones, or those of another `mark`."""
    try:
        tensors, about = read_tensors(path, device) if path.exists() else ({}, {})
    except InputError:
        print(f"{path} is damaged, and made again.")
        about = {}
    if about.get("mark") != mark:
        tensors = {name: t.to(device) for name, t in make().items()}
        write_tensors(path, tensors, {"mark": mark})
    return tensors


def write_weights(folder: Path, tensors: dict[str, Tensor], about: dict) -> None:
    """Write a network's ``weights.safetensors``, and ``config.json``: their SHA-256 and what else is known `about` them."""
    write_tensors(folder / "weights.safetensors", tensors)
    write_json(folder / "config.json", {"sha256": sha256(folder / "weights.safetensors"), **about})


def read_weights(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """What :func:`write_weights` wrote: (tensors, about); raises :class:`InputError` for missing or altered files."""
    config, weights = folder / "config.json", folder / "weights.safetensors"
    if missing := [path for path in (config, weights) if not path.exists()]:
        raise InputError(f"{missing[0]} is missing; restore it, or run again what writes it.")
    about = read_json(config)
    verify(weights, str(about.get("sha256")))
    return read_tensors(weights)[0], about


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | Path, digest: str) -> None:
    """Raise :class:`InputError` unless a file from elsewhere is the one that we know, by its SHA-256."""
    if (found := sha256(path)) != digest:
        begin = f"its SHA-256 begins {found[:12]}, and {digest[:12]} was expected"
        raise InputError(f"{path} is not the file it should be: {begin}; delete it and fetch it again.")


def fingerprint(*parts) -> str:
    """Short SHA-256 of files (given as paths) and JSON values."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.read_bytes() if isinstance(part, Path) else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()[:16]


class RowStore:
    """A table that grows row by row on disk, so that an interrupted evaluation goes on where it stopped.

    Rows are JSON lines, each with its checksum; ``done`` maps each row's key to it. A line that is half-written,
    damaged or edited is dropped, and the number of them is printed. A row that lacks one of `columns` (a metric that was
    added since) counts as missing; the one that is added in its place has the last word.
    """

    def __init__(self, path: str | Path, key: tuple[str, ...], columns: Iterable[str] = ()):
        self.path, self.key, self.columns = Path(path), key, set(columns)
        self.done: dict[tuple, dict] = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines, whole = self.path.read_text(errors="replace").splitlines(keepends=True) if self.path.exists() else [], []
        for line in lines:
            with suppress(ValueError, KeyError, TypeError, AttributeError):
                row = json.loads(line)
                if line.endswith("\n") and row.pop("check") == fingerprint(row):
                    self.done[self._key(row)] = row
                    whole.append(line)
        if len(whole) < len(lines):
            print(f"{self.path}: {len(lines) - len(whole)} damaged rows are dropped and will be measured again.")
            write_text(self.path, "".join(whole))

    def _key(self, row: dict) -> tuple:
        return tuple(row[k] for k in self.key)

    def __contains__(self, row: dict) -> bool:
        found = self.done.get(self._key(row))
        return found is not None and self.columns <= found.keys()

    def __getitem__(self, row: dict) -> dict:
        return self.done[self._key(row)]

    def add(self, row: dict) -> None:
        """Append one row and flush it to disk."""
        self.done[self._key(row)] = row
        with space_for(self.path), self.path.open("a") as file:
            file.write(json.dumps(row | {"check": fingerprint(row)}) + "\n")
