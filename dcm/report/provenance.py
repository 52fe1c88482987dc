"""Where a figure came from: written into its png, read back, and held against what it was drawn from.

A figure's record is JSON in the png's text chunk ``dcm`` (:class:`FigureRecord`). It has no dates, so equal inputs give
equal bytes. Files in the figure's folder are named relative to it, others of the repository relative to that, so that
the folder can be copied (``make publish``).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, NotRequired

from PIL import Image
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from dcm.support.errors import InputError, why
from dcm.support.files import ROOT, fingerprint, read_tensors, sha256, tensors_digest

PNG_KEY = "dcm"
RESULTS = ROOT / "results"
LARGEST = 1 << 36  # bytes of a file that a record may name: some of the system's have no end


class Source(TypedDict):
    """A file that a figure depends on: of a table, how many rows of it (`count`) are shown.

    Of parameters: the file that has them in full, and the `notebooks` that had a part in the figure.
    """

    file: str
    fingerprint: str
    count: NotRequired[int]
    notebooks: NotRequired[list[str]]


class FigureRecord(TypedDict):
    """What a figure's file says of itself."""

    study: str
    figure: str
    caption: str
    commit: str
    parameters: Source
    drawn_from: Annotated[list[Source], Field(max_length=100)]


RECORD = TypeAdapter(FigureRecord)


def source(path: Path, folder: Path, known: str = "", **more) -> dict:
    """The entry of the file `path` in a record of a figure in `folder`; its fingerprint is taken unless it is `known`."""
    inside = path.is_relative_to(folder) or not path.is_relative_to(ROOT)
    name = os.path.relpath(path, folder if inside else ROOT)
    return {"file": name, "fingerprint": known or file_fingerprint(path), **more}


def file_fingerprint(path: Path) -> str:
    """Of a file's content; of tensors the values alone count, not the time it took to make them."""
    return (tensors_digest(read_tensors(path)[0]) if path.suffix == ".safetensors" else sha256(path))[:16]


def printable(text: str) -> str:
    """`text` on one line without what would steer a terminal, and not too long."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:2000])


def read(path: str | Path) -> FigureRecord:
    """A figure's record; no pixel is decoded. Raises :class:`InputError` for a file that is none of the study's figures."""
    path = Path(path)
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist.")
        if path.suffix != ".png" or not path.is_file():
            raise InputError(f"{path} is no figure; allowed: png files that a notebook saved.")
        with Image.open(path, formats=["PNG"]) as image:
            text = image.info.get(PNG_KEY)
        if text is None:
            raise InputError(f"{path} says nothing of where it came from; it was not saved by this study.")
        return RECORD.validate_json(text, strict=True)
    except InputError as error:
        wrong = str(error)
    except Exception as error:  # a damaged file makes the library raise almost anything
        wrong = f"{path} cannot be read as a figure ({why(error)})."
    raise InputError(printable(wrong))


def shipped(path: Path) -> bool:
    """Whether `path` is among the results that the repository ships; what was run here is in results/local."""
    there = Path(os.path.realpath(path))
    return there.is_relative_to(RESULTS) and not there.is_relative_to(RESULTS / "local")


def _now(entry: Source, path: Path) -> str:
    """The fingerprint that `entry` would have today, were `path` its file."""
    if "notebooks" not in entry:
        return file_fingerprint(path)
    record = json.loads(path.read_text())  # of one notebook, or of a whole study
    records = record.get("notebooks", {record.get("notebook"): record})
    return fingerprint({name: of["parameters"] for name, of in records.items()})


def state(entry: Source, folder: Path) -> str:
    """``unchanged``, ``changed`` or ``not here``: an entry of a record against the file that it names."""
    there = [p for p in (folder / entry["file"], ROOT / entry["file"]) if os.path.exists(p)]
    if not there or (shipped(folder) and not shipped(there[0])):
        return "not here"  # but with whoever made it: a run on this machine is another
    try:
        readable = there[0].is_file() and there[0].stat().st_size <= LARGEST
        return "unchanged" if readable and _now(entry, there[0]) == entry["fingerprint"] else "changed"
    except Exception:  # whatever others have put there
        return "changed"


def states(path: str | Path) -> tuple[FigureRecord, list[tuple[Source, str]]]:
    """A figure's record, and the :func:`state` of everything that it depends on, its parameters first."""
    record = read(path)
    return record, [(entry, state(entry, Path(path).parent)) for entry in (record["parameters"], *record["drawn_from"])]


def stale(path: str | Path) -> list[str]:
    """Files among a figure's inputs that have changed since it was drawn; empty for a figure that is up to date."""
    return [entry["file"] for entry, now in states(path)[1] if now == "changed"]


def report(path: str | Path) -> tuple[str, bool]:
    """A figure's provenance in words, and whether it is up to date."""
    record, found = states(path)
    lines = [str(path), f"  figure      {record['figure']} of the study {record['study']}"]
    lines += [f"  caption     {record['caption']}", f"  commit      {record['commit']}"]
    for entry, now in found:
        what = "parameters" if entry is record["parameters"] else "drawn from"
        count = f", {entry['count']} rows" if "count" in entry else ""
        lines.append(f"  {what}  {entry['file']}{count}, {entry['fingerprint']}: {now}")
    changed = [entry["file"] for entry, now in found if now == "changed"]
    lines.append(f"  STALE: {', '.join(changed)} changed after it was drawn." if changed else "  up to date")
    return "\n".join(map(printable, lines)), not changed
