"""Fill the README from the results folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from dcm.analysis import compare
from dcm.metrics.images import ImageQuality
from dcm.metrics.mixture import MixtureQuality
from dcm.parameters.study import load_config
from dcm.support.files import ROOT, write_text

STUDIES: dict[str, tuple[str, str, Any]] = {  # study -> what the summary calls it, and whose primary metric judges it
    "gmm": ("`gmm`: 2-D mixture, exact ODE", "sliced Wasserstein", MixtureQuality),
    "digits": ("`digits`: 8 x 8 images, small UNet", "Frechet", ImageQuality),
    "cifar10": ("`cifar10`: 32 x 32 images, UNet", "Frechet", ImageQuality),
}
COMPARED = {"C1": "ODE error", "C2": "distance to the teacher's samples"}


def block(study: str) -> str:
    """The verdict lines of a study as its results folder states them, and tab1 folded away."""
    folder = ROOT / "results" / study
    page = (folder / "README.md").read_text().splitlines()
    verdicts = [line for line in page if line.startswith("- ")]
    table = (folder / "tab1.md").read_text().strip()
    title = "Table 1: method by solver, mean ± standard deviation over seeds"
    return "\n".join([*verdicts, "", "<details>", f"<summary>{title}</summary>", "", table, "", "</details>"])


def summary() -> str:
    """One line a study: both claims at its main setting, and in how many settings each verdict fell."""
    lines = []
    for study, (title, distance, quality) in STUDIES.items():
        config = load_config(ROOT / f"workflow/config/{study}.yaml")
        main = config.notebook("2_distill", config.main_group)
        claims = pd.read_csv(ROOT / f"results/{study}/verdicts.csv")
        line = {"study": title}
        for claim, metric, name in (("C1", "ode_error", ""), ("C2", quality.primary, f" ({distance})")):
            part = claims[(claims.claim == claim) & (claims.metric == metric)]
            at = part[(part.group == config.main_group) & (part.guidance == main["guidance"][0])].iloc[0]
            counts = part[part.seeds >= compare.MIN_SEEDS].verdict.value_counts()
            line["main setting"] = (
                f"N = {at.intervals}, w = {at.guidance:g}, {at.seeds} seeds, {main['updates']} updates"
            )
            line[f"{COMPARED[claim]}, Direct CM / CM"] = f"{at.value:.3g} [{at.low:.3g}, {at.high:.3g}]{name}"
            line[claim] = f"**{at.verdict}**"
            line[f"{claim}, all settings"] = ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
        lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False)


def dry_run_block() -> str:
    """The SDXL dry run's table, as ``benchmarks/sdxl_dry_run.py`` wrote it."""
    return (ROOT / "results" / "sdxl" / "dry_run.md").read_text().strip()


def regimes_block(name: str) -> str:
    """What notebook 6 found, folded away."""
    text = (ROOT / f"results/{name}/summary.md").read_text().strip()
    title = "In numbers: verdicts, the strongest regimes for and against C2, what became of each explanation"
    return "\n".join(["<details>", f"<summary>{title}</summary>", "", text, "", "</details>"])


def filled(text: str) -> str:
    """`text` with every block, from its ``<!-- name -->`` up to ``<!-- end -->``, made anew.

    Blocks: ``results:STUDY``, ``summary``, ``regimes_all`` and ``sdxl dry run``.
    """
    blocks: list[tuple[str, Callable[[re.Match], str]]] = [
        (r"<!-- results:(\w+) -->", lambda m: block(m[2])),
        ("<!-- summary -->", lambda m: summary()),
        (r"<!-- (regimes\w*) -->", lambda m: regimes_block(m[2])),
        ("<!-- sdxl dry run -->", lambda m: dry_run_block()),
    ]
    for start, made in blocks:
        pattern = re.compile(rf"({start}\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m: f"{m[1]}{made(m)}\n<!-- end -->", text)
    return text


def write() -> None:
    """Fill the README in place."""
    readme = ROOT / "README.md"
    write_text(readme, filled(readme.read_text()))
