"""The page writer: figures with their provenance, tables and sentences in one folder, with README.md and provenance.json."""

import html
import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dcm.report import provenance
from dcm.support.files import atomic, fingerprint, write_csv, write_json, write_text

LONG = 30  # a table of more lines is folded


def save(figure: Figure, folder: str | Path, record: dict) -> None:
    """Write ``figure``.png, with its `record` (see :mod:`dcm.report.provenance`), and ``figure``.pdf."""
    name, caption = record["figure"], record["caption"]
    png = {"Title": name, "Description": caption, provenance.PNG_KEY: json.dumps(record), "Software": None}
    pdf = {"Title": name, "Subject": caption, "CreationDate": None}
    for kind, metadata in (("png", png), ("pdf", pdf)):
        with atomic(Path(folder) / f"{name}.{kind}") as path:
            figure.savefig(path, metadata=metadata)
        figure.set_layout_engine("none")  # it is found, which takes as long as drawing does


def escaped(text: str) -> str:
    """Markdown in which no name or label can be HTML."""
    return html.escape(text, quote=False)


def show(*texts: str) -> None:
    """Show Markdown in the notebook."""
    from IPython.display import Markdown, display

    display(*map(Markdown, texts))


@dataclass
class Page:
    """A folder of figures and tables, and the page that shows them.

    `records`: what the notebooks behind it noted of themselves (:class:`dcm.notebook.Session`); the last draws the page.
    `parameters_file`: what has the parameters in full; the folder's provenance.json where nothing is said.
    `sentences`, `sections`: of README.md so far. `tables`: by name, with the files that each was joined from.
    """

    folder: Path
    study: str
    records: dict[str, dict]
    parameters_file: Path | None = None
    sentences: list[str] = field(default_factory=list)
    sections: list[tuple[str, str, str]] = field(default_factory=list)
    tables: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        *_, self.own = self.records.values()
        self.parameters = {notebook: record["parameters"] for notebook, record in self.records.items()}

    def csv(self, name: str, table: pd.DataFrame, *joined_from: Path) -> None:
        """Write a table that figures are drawn from; they are stale, too, when `joined_from` change."""
        self.tables[name] = joined_from
        write_csv(self.folder / f"{name}.csv", table)

    def figure(self, figure: Figure, name: str, caption: str, *files: Path, **rows: pd.DataFrame) -> None:
        """Save a figure as png and pdf, and keep it for the page.

        `files` are the files that it was drawn from, `rows` by name the parts of tables; without either, it is every
        table written so far.
        """
        counts = {name: {"count": len(part)} for name, part in rows.items()}
        tables: dict[str, dict] = counts if files or rows else dict.fromkeys(self.tables, {})
        sources = {self.folder / f"{table}.csv": count for table, count in tables.items()}
        sources |= dict.fromkeys([*files, *(path for table in rows for path in self.tables[table])], {})
        whole = self.parameters_file or self.folder / "provenance.json"
        record = {
            "study": self.study, "figure": name, "caption": caption, "commit": self.own["commit"],
            "parameters": provenance.source(whole, self.folder, fingerprint(self.parameters), notebooks=sorted(self.parameters)),
            "drawn_from": [provenance.source(path, self.folder, **count) for path, count in sources.items()],
        }  # fmt: skip
        save(figure, self.folder, record)
        self.sections.append((name, caption, f"![{name}]({name}.png)"))

    def table(self, name: str, readable: pd.DataFrame, caption: str, whole: pd.DataFrame | None = None) -> None:
        """Show a table, folded where it is long; keep it for the page and as Markdown, and the `whole` of it, unrounded, as csv."""
        if whole is not None:
            write_csv(self.folder / f"{name}.csv", whole)
        text = escaped(readable.to_markdown(index=False))
        write_text(self.folder / f"{name}.md", text + "\n")
        if len(readable) > LONG:
            text = f"<details><summary>{len(readable)} lines: {escaped(caption)}</summary>\n\n{text}\n\n</details>"
        self.sections.append((name, caption, text))
        show(text)

    def say(self, *sentences: str) -> None:
        """Show sentences as paragraphs and keep them for the page."""
        self.sentences += map(escaped, sentences)
        show(*map(escaped, sentences))

    def write(self, title: str) -> None:
        """Write provenance.json and README.md: the sentences, then every figure and table."""
        about = {
            "study": self.study, "commit": self.own["commit"], "parameters": fingerprint(self.parameters),
            "wall_seconds": round(sum(r.get("wall_seconds", 0) for r in self.records.values()), 1),
            "teacher_evaluations": sum(r.get("teacher_evaluations", 0) for r in self.records.values()),
            "notebooks": self.records,
        }  # fmt: skip
        write_json(self.folder / "provenance.json", about)
        head = [f"# {title}", f"Drawn by `notebooks/{self.own['notebook']}.ipynb`; do not edit.", *self.sentences]
        blocks = [text for name, caption, body in self.sections for text in (f"## {name}", escaped(caption), body)]
        write_text(self.folder / "README.md", "\n\n".join([*head, *blocks]) + "\n")
