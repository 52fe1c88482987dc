"""A table that grows row by row on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dcm.support.files import fingerprint, space_for, write_text

CHECK = "check"


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
        if self.path.exists():
            lines, whole = self.path.read_text(errors="replace").splitlines(keepends=True), []
            for line in lines:
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    row = json.loads(line)
                    if line.endswith("\n") and row.pop(CHECK) == fingerprint(row):
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
            file.write(json.dumps(row | {CHECK: fingerprint(row)}) + "\n")
