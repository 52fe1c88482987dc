"""Pages of results."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from dcm.report.provenance import PNG_KEY
from dcm.support.files import atomic


def save(figure: Figure, folder: str | Path, record: dict) -> None:
    """Write ``figure``.png and ``figure``.pdf with their `record` (see :mod:`dcm.report.provenance`) in both files."""
    name, caption, about = record["figure"], record["caption"], json.dumps(record)
    with atomic(Path(folder) / f"{name}.png") as path:
        figure.savefig(path, metadata={"Title": name, "Description": caption, PNG_KEY: about, "Software": None})
    with atomic(Path(folder) / f"{name}.pdf") as path:
        figure.savefig(path, metadata={"Title": name, "Subject": caption, "Keywords": about, "CreationDate": None})
