"""The page writer: figures with their provenance, tables, sentences, README.md and provenance.json in one folder."""

from __future__ import annotations

import html
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dcm.report import provenance
from dcm.support.files import ROOT, atomic, fingerprint, write_csv, write_json, write_tensors, write_text


def save(figure: Figure, folder: str | Path, record: dict) -> list[Path]:
    """Write ``figure``.png and ``figure``.pdf with their `record` (see :mod:`dcm.report.provenance`) in both files."""
    name, caption, about = record["figure"], record["caption"], json.dumps(record)
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("png", "pdf")]
    with atomic(paths[0]) as path:
        figure.savefig(
            path, metadata={"Title": name, "Description": caption, provenance.PNG_KEY: about, "Software": None}
        )
    with atomic(paths[1]) as path:
        figure.savefig(path, metadata={"Title": name, "Subject": caption, "Keywords": about, "CreationDate": None})
    return paths


def escaped(text: str) -> str:
    """Markdown in which no name or label can be HTML."""
    return html.escape(text, quote=False)


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown."""
    return escaped(table.to_markdown(index=False))


@dataclass
class Page:
    """A folder of figures and tables, and the page that shows them.

    Attributes
    ----------
    folder : where all of it goes. study : whose results they are.
    records : what the notebooks behind them noted of themselves (:class:`dcm.support.record.Record`), by name; the last
        draws the page.
    parameters_file : what has the parameters in full; the folder's provenance.json where nothing is said.
    sentences, sections : of README.md so far. files : everything written so far.
    tables : by name the csv files written so far, and the files that each was joined from.
    """

    folder: Path
    study: str
    records: dict[str, dict]
    parameters_file: Path | None = None
    sentences: list[str] = field(default_factory=list)
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    tables: dict[str, tuple[pd.DataFrame, tuple[Path, ...]]] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, dict]:
        """Parameters of every notebook behind the page."""
        return {notebook: record["parameters"] for notebook, record in self.records.items()}

    @property
    def _last(self) -> dict:
        return list(self.records.values())[-1]

    @property
    def minutes(self) -> float:
        """Wall time of the notebooks behind the page, one after the other."""
        return sum(r.get("wall_seconds", 0) for r in self.records.values()) / 60

    def csv(self, name: str, table: pd.DataFrame, *joined_from: Path) -> None:
        """Write a table that figures are drawn from; a figure of its rows is stale, too, when `joined_from` change."""
        self.tables[name] = (table, joined_from)
        write_csv(self._path(f"{name}.csv"), table)

    def tensors(self, name: str, tensors: dict) -> Path:
        """Write tensors that a figure is drawn from."""
        write_tensors(path := self._path(f"{name}.safetensors"), tensors)
        return path

    def figure(self, figure: Figure, name: str, caption: str, *files: Path, **rows: pd.DataFrame) -> None:
        """Save a figure as png and pdf, and keep it for the page.

        `files` are the files that it was drawn from, `rows` by name the parts of tables; without either, it is every
        table written so far.
        """
        if not files and not rows:
            files = tuple(self.folder / f"{name}.csv" for name in self.tables)
        drawn_from, joined = [], dict.fromkeys(files)
        for table_name, part in rows.items():
            table, sources = self.tables[table_name]
            drawn_from.append(provenance.of_rows(self.folder / f"{table_name}.csv", table, part, self.folder))
            joined |= dict.fromkeys(sources)
        whole = self.parameters_file or self.folder / "provenance.json"
        record = {
            "study": self.study, "figure": name, "caption": caption, "commit": self._last["commit"],
            "parameters": provenance.of_parameters(self.parameters, whole, self.folder),
            "drawn_from": drawn_from + [provenance.of_file(path, self.folder) for path in joined],
        }  # fmt: skip
        self.files += save(figure, self.folder, record)
        self.sections.append((name, caption, f"![{name}]({name}.png)"))

    def table(self, name: str, readable: pd.DataFrame, caption: str, whole: pd.DataFrame | None = None) -> None:
        """Show a table, keep it for the page and as Markdown, and the `whole` of it, unrounded, as csv."""
        if whole is not None:
            write_csv(self._path(f"{name}.csv"), whole)
        text = markdown(readable)
        write_text(self._path(f"{name}.md"), text + "\n")
        self.sections.append((name, caption, text))
        show(text)

    def say(self, *sentences: str) -> None:
        """Show sentences as paragraphs and keep them for the page."""
        self.sentences += map(escaped, sentences)
        show(*map(escaped, sentences))

    def text(self, name: str, text: str) -> None:
        """Write a file of Markdown."""
        write_text(self._path(name), text)

    def json(self, name: str, value) -> None:
        """Write a file of JSON."""
        write_json(self._path(name), value)

    def write(self, title: str) -> None:
        """Write provenance.json and README.md: the sentences, then every figure and table."""
        spent = lambda key: sum(r.get(key, 0) for r in self.records.values())
        about = {
            "study": self.study, "commit": self._last["commit"], "parameters": fingerprint(self.parameters),
            "wall_seconds": round(spent("wall_seconds"), 1), "teacher_evaluations": spent("teacher_evaluations"),
            "notebooks": self.records,
        }  # fmt: skip
        self.json("provenance.json", about)
        head = [f"# {title}", f"Drawn by `notebooks/{self._last['notebook']}.ipynb`; do not edit.", *self.sentences]
        blocks = [part for name, caption, body in self.sections for part in (f"## {name}", escaped(caption), body)]
        self.text("README.md", "\n\n".join([*head, *blocks]) + "\n")

    def written(self) -> str:
        """Names of the files written, in one sentence."""
        names = sorted({os.path.relpath(path, self.folder) for path in self.files})
        folder = self.folder.relative_to(ROOT) if self.folder.is_relative_to(ROOT) else self.folder
        return f"{len(names)} files are in {folder}: {', '.join(names)}."

    def _path(self, name: str) -> Path:
        self.files.append(self.folder / name)
        return self.files[-1]


def show(*texts: str) -> None:
    """Show Markdown in the notebook."""
    from IPython.display import Markdown, display

    for text in texts:
        display(Markdown(text))
