"""Where a figure came from: written into its png, read back, and held against what it was drawn from.

The record is JSON in the png's text chunk ``dcm``: study, figure, caption, commit, ``parameters``, a :func:`source`, and
``drawn_from``, a list of them. It has no dates, so equal inputs give equal bytes. Files in the figure's folder are named
relative to it, others of the repository relative to that, so that the folder can be copied (``make publish``).
"""

import json
import os
from pathlib import Path

from PIL import Image

from dcm.support.errors import InputError, why
from dcm.support.files import ROOT, fingerprint, read_tensors, sha256, tensors_digest

PNG_KEY = "dcm"
RESULTS = ROOT / "results"
MOST, LARGEST = 100, 1 << 36  # files that a record may name, and their bytes: some of the system's have no end


def source(path: Path, folder: Path, known: str = "", **more) -> dict:
    """A file that a figure in `folder` depends on, for its record; its fingerprint is taken unless it is `known`.

    `more` is, of a table, the ``count`` of the rows shown; of parameters in full, the ``notebooks`` that had them.
    """
    inside = path.is_relative_to(folder) or not path.is_relative_to(ROOT)
    name = os.path.relpath(path, folder if inside else ROOT)
    return {"file": name, "fingerprint": known or file_fingerprint(path), **more}


def file_fingerprint(path: Path) -> str:
    """Of a file's content; of tensors the values alone count, not the time it took to make them."""
    return (tensors_digest(read_tensors(path)[0]) if path.suffix == ".safetensors" else sha256(path))[:16]


def read(path: Path) -> dict:
    """A figure's record; no pixel is decoded. Raises :class:`InputError` for a file that is no figure."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.suffix != ".png" or not path.is_file():
        raise InputError(f"{path} is no figure; allowed: png files that a notebook saved.")
    with Image.open(path, formats=["PNG"]) as image:
        if PNG_KEY not in image.info:
            raise InputError(f"{path} says nothing of where it came from; it was not saved by this study.")
        return json.loads(image.info[PNG_KEY])


def shipped(path: Path) -> bool:
    """Whether `path` is among the results that the repository ships; what was run here is in results/local."""
    there = Path(os.path.realpath(path))
    return there.is_relative_to(RESULTS) and not there.is_relative_to(RESULTS / "local")


def _now(entry: dict, path: Path) -> str:
    """The fingerprint that the source `entry` would have today, were `path` its file."""
    if "notebooks" not in entry:
        return file_fingerprint(path)
    record = json.loads(path.read_text())  # of one notebook, or of a whole study
    records = record.get("notebooks", {record.get("notebook"): record})
    return fingerprint({name: of["parameters"] for name, of in records.items()})


def state(entry: dict, folder: Path) -> str:
    """``unchanged``, ``changed`` or ``not here``: a source of a figure in `folder` against the file that it names."""
    there = [p for p in (folder / entry["file"], ROOT / entry["file"]) if os.path.exists(p)]
    if not there or (shipped(folder) and not shipped(there[0])):
        return "not here"  # but with whoever made it: a run on this machine is another
    try:
        readable = there[0].is_file() and there[0].stat().st_size <= LARGEST
        return "unchanged" if readable and _now(entry, there[0]) == entry["fingerprint"] else "changed"
    except Exception:  # whatever others have put there
        return "changed"


def report(path: str | Path) -> tuple[str, list[str]]:
    """A figure's provenance in words, and which files among its inputs have changed since it was drawn.

    Raises :class:`InputError` for a file that is none of the study's figures.
    """
    # On one line each, without what would steer a terminal, and not too long.
    printable = lambda text: "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:2000])
    try:
        record, folder, changed = read(Path(path)), Path(path).parent, []
        lines = [str(path), f"  figure      {record['figure']} of the study {record['study']}"]
        lines += [f"  caption     {record['caption']}", f"  commit      {record['commit']}"]
        sources = [("parameters", record["parameters"]), *(("drawn from", s) for s in record["drawn_from"])]
        if len(sources) > MOST:
            raise ValueError(f"it names {len(sources)} files; allowed: at most {MOST}")
        for what, entry in sources:
            now = state(entry, folder)
            changed += [entry["file"]] * (now == "changed")
            count = f", {entry['count']} rows" if "count" in entry else ""
            lines.append(f"  {what}  {entry['file']}{count}, {entry['fingerprint']}: {now}")
        lines.append(f"  STALE: {', '.join(changed)} changed after it was drawn." if changed else "  up to date")
        return "\n".join(map(printable, lines)), changed
    except Exception as error:  # a damaged file makes the library raise almost anything
        wrong = str(error) if isinstance(error, InputError) else f"{path} cannot be read as a figure ({why(error)})."
        raise InputError(printable(wrong)) from None
