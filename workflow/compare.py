"""Verdicts of a study that was run here, against those that the repository ships, and the page to open.

`python workflow/compare.py [results/local/gmm ..]`; `--publish gmm` makes what was run here what is shipped.
"""

import argparse
import html
import shutil
import sys
from pathlib import Path

import mistune
import pandas as pd

from dcm.analysis.compare import interval
from dcm.parameters.study import read_config
from dcm.support.errors import InputError
from dcm.support.files import ROOT, read_json, write_text

SHIPPED, LOCAL = ROOT / "results", ROOT / "results/local"
KINDS = {".png", ".csv", ".md", ".json"}
# Of these the repository ships what was measured alone; their tables and figures are those of regimes_all.
SOURCES = ("regimes", "regimes_cifar10")
MEASURED = {"metrics.csv", "studies.json", "provenance.json"}
SETTING = "run group solver intervals guidance horizon method seed update steps pair claim metric".split()
STYLE = "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}img{max-width:100%}table{font-size:80%;border-collapse:collapse}td,th{padding:.2em .6em;border-bottom:1px solid #ccc}"


def beside(here: pd.DataFrame, there: pd.DataFrame) -> pd.DataFrame:
    """Rows of the same setting side by side; columns of `there` end in ``_shipped``."""
    key = [c for c in SETTING if c in here and c in there]
    return here.merge(there, on=key, suffixes=("", "_shipped"))


def largest_difference(here: pd.DataFrame, there: pd.DataFrame) -> str:
    """Where a metric differs most from the shipped one, relative to it; to the metric's mean, where it passes zero."""
    rows, found = beside(here, there), []
    if rows.empty:
        return "none of the shipped rows was measured here"
    for name in here.select_dtypes("number").columns.difference(SETTING):
        if f"{name}_shipped" not in rows or rows[f"{name}_shipped"].isna().all():
            continue
        now, shipped = rows[name], rows[f"{name}_shipped"]
        positive = (shipped > 0).all()
        scale = shipped if positive else shipped.abs().mean()
        off = ((now - shipped).abs() / scale).fillna(0)
        row = rows.loc[off.idxmax()]
        at = [(c, row[c]) for c in ("run", "group", "horizon", "seed", "update", "steps") if c in row]
        setting = ", ".join(f"{c} {value:g}" if isinstance(value, float) else f"{c} {value}" for c, value in at)
        values = f"{name} {row[name]:.6g}, shipped {row[f'{name}_shipped']:.6g}"
        found.append((off.max(), f"{off.max():.2g}{'' if positive else ' of its mean'} ({values}: {setting})"))
    return f"{max(found)[1]}, of {len(rows)} rows in both"


def verdicts(folder: Path, here: pd.DataFrame, there: pd.DataFrame | None) -> list[str]:
    """The verdicts at the main setting, as far as there is one, or their counts; and those that differ."""
    notebooks = read_json(folder / "provenance.json")["notebooks"]
    main = notebooks.get("5_figures", {}).get("parameters", {}).get("main_group")
    lines = []
    if main:
        w = notebooks[f"2_distill-{main}"]["parameters"]["guidance"][0]
        at = here[(here.group == main) & (here.guidance == w)]
        for claim, rows in at.groupby("claim"):
            each = "; ".join(f"{name} by {', '.join(part.metric)}" for name, part in rows.groupby("verdict", sort=False))
            first = rows.iloc[0]
            lines.append(f"{claim} {each} ({first.metric}: {first.effect} {interval(first)})")
    else:
        for claim, rows in here.groupby("claim"):
            lines.append(f"{claim} {', '.join(f'{n} {verdict}' for verdict, n in rows.verdict.value_counts().items())}")
    if there is not None:
        rows = beside(here, there)
        other = rows[rows.verdict != rows.verdict_shipped]
        each = [
            f"{r.claim} {r.metric} in {r.group}, {r.solver}, N = {r.intervals}, w = {r.guidance:g}: {r.verdict}, shipped {r.verdict_shipped}"
            for r in other.head(3).itertuples()
        ]
        few = "; ".join([*each, *([f"{len(other) - 3} more"] if len(other) > 3 else [])])
        lines.append(f"{len(rows) - len(other)} of {len(rows)} verdicts as shipped" + (f"; not: {few}" if few else ""))
    return lines


def write_page(folder: Path) -> Path:
    """The folder's README.md as index.html beside it: no scripts, nothing from elsewhere, text escaped."""
    text = (folder / "README.md").read_text()
    body = mistune.create_markdown(escape=True, plugins=["table"])(text)
    title = html.escape(text.splitlines()[0].lstrip("# "))
    page = folder / "index.html"
    write_text(page, f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n{body}')
    return page


def compare(folder: Path) -> None:
    """Print what a results folder says, against the shipped one of its name, and where to read on."""
    if not (folder / "metrics.csv").exists():
        raise InputError(f"{folder} has no metrics.csv: run its study first (make study-{folder.name}).")
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("metrics", "verdicts")}
    judged = "regimes_all" if folder.name in SOURCES else folder.name
    places = {"metrics": SHIPPED / folder.name / "metrics.csv", "verdicts": SHIPPED / judged / "verdicts.csv"}
    shipped = {name: pd.read_csv(path) for name, path in places.items() if path.exists()}
    lines = verdicts(folder, tables["verdicts"], shipped.get("verdicts"))
    if "metrics" in shipped:
        most = largest_difference(tables["metrics"], shipped["metrics"])
        lines.append(f"largest relative difference of a metric: {most}")
    page = write_page(folder)
    print("\n  ".join([folder.name, *lines, f"open {page.relative_to(ROOT) if page.is_relative_to(ROOT) else page}"]))


def is_shipped(path: Path, name: str) -> bool:
    """Whether a file of the results `name` is one that the repository ships."""
    if name in SOURCES:
        return path.suffix == ".safetensors" or path.name in MEASURED
    return path.suffix in KINDS and not path.name.startswith("dry_run")  # that is a benchmark's


def publish(name: str) -> None:
    """Replace figures, tables and pages of ``results/name`` by those of ``results/local/name``."""
    source, shipped = LOCAL / name, SHIPPED / name
    if not (source / "metrics.csv").exists():
        raise InputError(f"{source} has no metrics.csv: run its study first (make study-{name}).")
    shipped.mkdir(exist_ok=True)
    for path in shipped.glob("*.*"):
        if is_shipped(path, name):
            path.unlink()
    for path in source.glob("*.*"):
        if is_shipped(path, name):
            shutil.copyfile(path, shipped / path.name)


def main() -> None:
    """Compare the folders that are named, or all in results/local."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="*", type=Path, help="results folders, or configurations; by default results/local/*"
    )
    parser.add_argument("--publish", metavar="STUDY", help="copy results/local/STUDY to results/STUDY")
    asked = parser.parse_args()
    try:
        if asked.publish:
            return publish(asked.publish)
        found = asked.folders or sorted(p.parent for p in LOCAL.glob("*/metrics.csv"))
        if not found:
            raise InputError("there is nothing in results/local yet: run make study first.")
        for path in found:
            compare(ROOT / (read_config(path)["results_dir"] if path.suffix == ".yaml" else path))
    except (InputError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
