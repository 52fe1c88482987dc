"""Where a figure came from: written into its own file, read back, and held against what it was drawn from.

A figure's record is JSON in the png's text chunk ``dcm`` and in the pdf's keywords. It has no dates, so equal inputs
give equal bytes::

    {"study", "figure", "caption", "commit",
     "parameters": {"file", "fingerprint", "notebooks"},          of every notebook that had a part in it
     "drawn_from": [{"file", "fingerprint", "rows", "count"}]}    without rows and count: the whole file

Files are named relative to the figure's folder.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from dcm.support.errors import InputError
from dcm.support.files import csv_text, fingerprint, read_tensors, tensors_digest

PNG_KEY = "dcm"
KEYS = {  # columns by which a table's rows are found
    "metrics.csv": ["group", "solver", "intervals", "guidance", "horizon", "seed", "update", "steps", "final"],
    "teacher_quality.csv": ["solver", "intervals", "guidance"],
    "ode_error_by_time.csv": ["group", "horizon", "guidance", "seed", "t"],
    "solver_error.csv": ["solver", "guidance", "intervals"],
}
Clause = dict[str, list[str]]  # column -> allowed values, as text; a column that is not named may have any


def as_text(table: pd.DataFrame | Path) -> pd.DataFrame:
    """A table (or csv file) cell by cell as its csv file has it, so that rounding is behind us."""
    source = table if isinstance(table, Path) else io.StringIO(csv_text(table))
    return pd.read_csv(source, dtype=str, keep_default_na=False)


def find(table: pd.DataFrame, clauses: Iterable[Clause]) -> pd.Series:
    """Mask (rows,) of a table of texts: rows that fulfil at least one clause."""
    mask = pd.Series(False, table.index)
    for clause in clauses:
        mask |= table.isin(clause)[list(clause)].all(axis=1)
    return mask


def describe(table: pd.DataFrame, mask: pd.Series, columns: list[str]) -> list[Clause]:
    """Few clauses in `columns` that :func:`find` exactly the rows in `mask`: one for all, one a group, or one a row."""
    chosen = table[mask]
    for by in ([], columns[:1], columns):
        parts = [part for _, part in chosen.groupby(by)] if by else [chosen]
        clauses = [
            {c: list(part[c].unique()) for c in columns if set(part[c]) != set(table[c])} for part in parts
        ]  # fmt: skip
        if find(table, clauses).equals(mask):
            return clauses
    raise InputError(f"the columns {', '.join(columns)} do not tell the table's rows apart.")


def of_rows(path: Path, table: pd.DataFrame, part: pd.DataFrame, folder: Path) -> dict:
    """A ``drawn_from`` entry for the rows `part` of the `table` that is, or will be, the csv file `path`."""
    columns = [c for c in KEYS[path.name] if c in table]
    texts, wanted = as_text(table), as_text(part[list(table.columns)])
    mask = pd.Series(pd.MultiIndex.from_frame(texts[columns]).isin(pd.MultiIndex.from_frame(wanted[columns])))
    rows = describe(texts, mask, columns)
    mark = fingerprint(texts[mask].to_csv(index=False))
    return {"file": os.path.relpath(path, folder), "fingerprint": mark, "rows": rows, "count": int(mask.sum())}


def of_file(path: Path, folder: Path) -> dict:
    """A ``drawn_from`` entry for a whole file; of tensors their values alone count, not the time it took to make them."""
    return {"file": os.path.relpath(path, folder), "fingerprint": file_fingerprint(path)}


def file_fingerprint(path: Path) -> str:
    """Fingerprint of a file's content."""
    return tensors_digest(read_tensors(path)[0])[:16] if path.suffix == ".safetensors" else fingerprint(path)


def of_parameters(parameters: dict[str, dict], path: Path, folder: Path) -> dict:
    """The ``parameters`` entry: their fingerprint, and the file that has them in full."""
    return {
        "file": os.path.relpath(path, folder),
        "fingerprint": fingerprint(parameters),
        "notebooks": sorted(parameters),
    }


def parameters_in(path: Path) -> dict[str, dict]:
    """Parameters by notebook in a provenance file, of one notebook or of a whole study."""
    record = json.loads(path.read_text())
    return {name: r["parameters"] for name, r in record.get("notebooks", {record.get("notebook"): record}).items()}


def read(path: str | Path) -> dict:
    """A figure's record. Raises :class:`InputError` for a file that is none of the study's figures."""
    path = Path(path)
    try:
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                text = getattr(image, "text", {}).get(PNG_KEY)
        elif path.suffix == ".pdf":
            from pypdf import PdfReader

            text = (PdfReader(path).metadata or {}).get("/Keywords")
        else:
            raise InputError(f"{path} is no figure; allowed: png and pdf files that notebooks 1 and 5 saved.")
        record = json.loads(text) if text else None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except InputError:
        raise
    except Exception as error:  # a damaged file makes either library raise almost anything
        raise InputError(f"{path} cannot be read as a figure ({type(error).__name__}: {error}).") from None
    if not isinstance(record, dict) or "drawn_from" not in record:
        raise InputError(f"{path} says nothing of where it came from; it was not saved by this study.")
    return record


def state(entry: dict, folder: Path) -> str:
    """``unchanged``, ``changed`` or ``not here``: an entry of a record against the file that it names."""
    path = folder / entry["file"]
    if not path.exists():
        return "not here"
    try:
        if "notebooks" in entry:
            now = fingerprint(parameters_in(path))
        elif "rows" in entry:
            table = as_text(path)
            now = fingerprint(table[find(table, entry["rows"])].to_csv(index=False))
        else:
            now = file_fingerprint(path)
    except (InputError, ValueError, KeyError):
        return "changed"
    return "unchanged" if now == entry["fingerprint"] else "changed"


def inputs(record: dict) -> list[dict]:
    """Everything that a figure depends on."""
    return [record["parameters"], *record["drawn_from"]]


def stale(path: str | Path) -> list[str]:
    """Files among a figure's inputs that have changed since it was drawn; empty for a figure that is up to date."""
    return [e["file"] for e in inputs(read(path)) if state(e, Path(path).parent) == "changed"]


def where(rows: list[Clause]) -> str:
    """Clauses in words."""
    each = [" and ".join(f"{c} in {{{', '.join(v)}}}" for c, v in clause.items()) or "all" for clause in rows]
    return ", or ".join(each)


def report(path: str | Path) -> tuple[str, bool]:
    """A figure's provenance in words, and whether it is up to date."""
    record, folder = read(path), Path(path).parent
    lines = [
        f"{path}",
        f"  figure      {record['figure']} of the study {record['study']}",
        f"  caption     {record['caption']}",
        f"  commit      {record['commit']}",
    ]
    for entry in inputs(record):
        what = "parameters" if entry is record["parameters"] else "drawn from"
        count = f", {entry['count']} rows" if "count" in entry else ""
        lines.append(f"  {what}  {entry['file']}{count}, {entry['fingerprint']}: {state(entry, folder)}")
        if "rows" in entry:
            lines.append(f"              {where(entry['rows'])}")
    changed = stale(path)
    lines.append(f"  STALE: {', '.join(changed)} changed after it was drawn." if changed else "  up to date")
    return "\n".join(lines), not changed
