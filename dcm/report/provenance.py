"""Where a figure came from: written into its own file, read back, and held against what it was drawn from.

A figure's record is JSON in the png's text chunk ``dcm`` and in the pdf's keywords (:class:`FigureRecord`). It has no
dates, so equal inputs give equal bytes. Files in the figure's folder are named relative to it, others of the repository
relative to that, so that the folder can be copied (``make publish``).
"""

from __future__ import annotations

import json
import logging
import os
import stat
import warnings
from pathlib import Path
from typing import Annotated, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dcm.support.errors import InputError, why
from dcm.support.files import ROOT, fingerprint, read_tensors, tensors_digest

PNG_KEY = "dcm"
RESULTS = ROOT / "results"
RECORD_CHARACTERS = 1 << 20  # a figure may come from others, and name files of any kind
TEXT_BYTES, TENSOR_BYTES = 1 << 26, 1 << 36


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


def name_of(path: Path, folder: Path) -> str:
    """How a record of a figure in `folder` names the file `path`."""
    inside = path.is_relative_to(folder) or not path.is_relative_to(ROOT)
    return os.path.relpath(path, folder if inside else ROOT)


def of_file(path: Path, folder: Path, **more: int) -> dict:
    """A ``drawn_from`` entry; `more` has the ``count`` of the rows shown, of a table."""
    return {"file": name_of(path, folder), "fingerprint": file_fingerprint(path), **more}


def file_fingerprint(path: Path) -> str:
    """Of a file's content; of tensors the values alone count, not the time it took to make them."""
    return tensors_digest(read_tensors(path)[0])[:16] if path.suffix == ".safetensors" else fingerprint(path)


def of_parameters(parameters: dict[str, dict], path: Path, folder: Path) -> dict:
    """The ``parameters`` entry, by notebook: their fingerprint, and the file that has them in full."""
    return {"file": name_of(path, folder), "fingerprint": fingerprint(parameters), "notebooks": sorted(parameters)}


def regular(path: Path, most: int = TEXT_BYTES) -> Path:
    """`path`, which may come from others: raises :class:`InputError` unless it is a regular file of at most `most` bytes."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no regular file; allowed: png and pdf figures.")
    if found.st_size > most:
        raise InputError(f"{path} has {found.st_size} bytes; allowed: at most {most}.")
    return path


def printable(text: str, most: int = 2000) -> str:
    """`text` on one line without what would steer a terminal, and not too long."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]} ..."


def _text(path: Path) -> str | None:
    """The record in a figure's file as it stands there; no pixel is decoded."""
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get(PNG_KEY)
    if path.suffix == ".pdf":
        from pypdf import PdfReader

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it finds is said in our own sentence
        return (PdfReader(path).metadata or {}).get("/Keywords")
    raise InputError(f"{path} is no figure; allowed: png and pdf files that a notebook saved.")


def read(path: str | Path) -> FigureRecord:
    """A figure's record. Raises :class:`InputError` for a file that is none of the study's figures."""
    path = Path(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of images that are too large
            text = _text(regular(path))
        if not isinstance(text, str) or len(text) > RECORD_CHARACTERS:
            raise InputError(f"{path} says nothing of where it came from; it was not saved by this study.")
        return RECORD.validate_json(text, strict=True)
    except FileNotFoundError:
        wrong = f"{path} does not exist."
    except InputError as error:
        wrong = str(error)
    except ValidationError as error:
        wrong = f"{path} has a record that is none of this study's ({why(error)})."
    except Exception as error:  # a damaged file makes either library raise almost anything
        wrong = f"{path} cannot be read as a figure ({why(error)})."
    raise InputError(printable(wrong))


def shipped(path: Path) -> bool:
    """Whether `path` is among the results that the repository ships; what was run here is in results/local."""
    there = Path(os.path.realpath(path))  # which does not mind what no file can be called
    return there.is_relative_to(RESULTS) and not there.is_relative_to(RESULTS / "local")


def _now(entry: Source, path: Path) -> str:
    """The fingerprint that `entry` would have today, were `path` its file."""
    if path.suffix == ".safetensors":
        return file_fingerprint(regular(path, TENSOR_BYTES))
    if "notebooks" in entry:  # of one notebook's record, or of a whole study's
        record = json.loads(regular(path).read_text())
        records = record.get("notebooks", {record.get("notebook"): record})
        return fingerprint({name: of["parameters"] for name, of in records.items()})
    return file_fingerprint(regular(path))


def state(entry: Source, folder: Path) -> str:
    """``unchanged``, ``changed`` or ``not here``: an entry of a record against the file that it names."""
    places = (folder / entry["file"], ROOT / entry["file"])
    path = next((p for p in places if os.path.exists(p)), places[0])
    try:
        if shipped(folder) and not shipped(path):
            return "not here"  # but with whoever made it: a run on this machine is another
        return "unchanged" if _now(entry, path) == entry["fingerprint"] else "changed"
    except FileNotFoundError:
        return "not here"
    except (OSError, RecursionError, ValueError, KeyError, AttributeError, TypeError):
        return "changed"


def states(path: str | Path) -> tuple[FigureRecord, list[tuple[Source, str]]]:
    """A figure's record, and the :func:`state` of everything that it depends on, its parameters first."""
    record = read(path)
    sources = [record["parameters"], *record["drawn_from"]]
    return record, [(entry, state(entry, Path(path).parent)) for entry in sources]


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
