"""A table that grows row by row on disk."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from dcm.support.files import space_for, write_text


class RowStore:
    """A table that grows row by row on disk, so that an interrupted evaluation goes on where it stopped.

    Rows are JSON lines; ``done`` maps each row's key to it. A half-written or damaged line is dropped.
    """

    def __init__(self, path: str | Path, key: tuple[str, ...]):
        self.path, self.key, self.done = Path(path), key, {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = []
        if self.path.exists():
            for line in self.path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    with suppress(ValueError, KeyError, TypeError):
                        row = json.loads(line)
                        self.done[self._key(row)] = row
                        whole.append(line)
            write_text(self.path, "".join(whole))

    def _key(self, row: dict) -> tuple:
        return tuple(row[k] for k in self.key)

    def __contains__(self, row: dict) -> bool:
        return self._key(row) in self.done

    def __getitem__(self, row: dict) -> dict:
        return self.done[self._key(row)]

    def add(self, row: dict) -> None:
        """Append one row and flush it to disk."""
        self.done[self._key(row)] = row
        with space_for(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
