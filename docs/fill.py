"""Fill the generated parts of README.md and docs/*.md from results/: ``python docs/fill.py``. Twice changes nothing.

<!-- NAME --> .. <!-- end -->        a block, made by ``BLOCKS[NAME]``
<!--NAME ARG; ARG-->1.23<!--/-->     a number inside a sentence, made by ``NUMBERS[NAME]``
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
VERDICTS = ("supported", "contradicted", "inconclusive")
STUDIES = ("gmm", "digits", "cifar10")
ALL = "regimes_all"
MIN_SEEDS = 3  # fewer have no verdict
# By study: the distance to the teacher's samples that its verdict on C2 rests on, and a second judge.
JUDGES = {
    "gmm": {"swd_teacher": "", "swd_data": "to data"},
    "digits": {"fd_teacher": "classifier", "fd_pixels": "pixels"},
    "cifar10": {"fd_teacher": "EfficientNet", "fd_classifier": "classifier"},  # the latter in notebook 7's runs alone
}
TEACHERS = {
    "gmm": "exact, 2-D",
    "gmm_16d_modes": "exact, 16-D with 12 modes a class",
    "digits": "digits",
    "cifar10": "CIFAR-10",
    "cifar10_long": "CIFAR-10",
}
# The rows of the README's table: results folder, run (of notebook 7) or study, regime or group.
SHOWN = [
    ("gmm", "gmm", "main"),
    (ALL, "gmm_16d_modes", "main"),
    ("digits", "digits", "main"),
    (ALL, "digits", "lr 5e-05, constant lr, 594 updates"),
    ("cifar10", "cifar10", "main"),
    (ALL, "cifar10_long", "15000 updates"),
]


@cache
def table(folder: str, name: str = "verdicts") -> pd.DataFrame:
    """A csv file of a results folder."""
    return pd.read_csv(ROOT / "results" / folder / f"{name}.csv")


@cache
def read(folder: str, name: str) -> dict:
    """A json file of a results folder."""
    return json.loads((ROOT / "results" / folder / f"{name}.json").read_text())


def row(folder: str, run: str, regime: str, metric: str) -> pd.Series:
    """A row of verdicts: of a study's group, or of a regime of notebook 7. Exits where there is not exactly one."""
    rows = table(folder)
    named = (rows.run == run) & (rows.regime == regime) if "regime" in rows else rows.group == regime
    found = rows[named & (rows.metric == metric)]
    if len(found) != 1:
        raise SystemExit(f"results/{folder}/verdicts.csv has {len(found)} rows of {run}, {regime}, {metric}, not one.")
    return found.iloc[0]


def effect(folder: str, run: str, regime: str, metric: str) -> str:
    """An effect and its interval."""
    at = row(folder, run, regime, metric)
    return f"{at.value:.3g} [{at.low:.3g}, {at.high:.3g}]"


def ratio(folder: str, run: str, regime: str, metric: str) -> str:
    """An effect alone."""
    return f"{row(folder, run, regime, metric).value:.3g}"


def of(family: str, metric: str, verdict: str = "") -> pd.DataFrame:
    """Verdicts of notebook 7's regimes of a study by a measure: all, or those that came out as `verdict`."""
    rows = table(ALL)
    found = rows[(rows.family == family) & (rows.metric == metric)]
    return found[found.verdict == verdict] if verdict else found


def count(family: str, metric: str, verdict: str = "") -> str:
    """In how many regimes of a study a measure gave `verdict`, or any."""
    return str(len(of(family, metric, verdict)))


def with_c1(family: str, metric: str) -> pd.DataFrame:
    """Regimes that support C2 by a measure, and C1 as well."""
    key = ["run", "regime"]
    return of(family, metric, "supported").merge(of(family, "ode_error", "supported")[key], on=key)


def both(family: str, metric: str) -> str:
    """How many support both claims at once."""
    return str(len(with_c1(family, metric)))


def solver_error(folder: str, solver: str, guidance: str, intervals: str) -> str:
    """A solver's mean squared error to the best known solution."""
    rows = table(folder, "solver_error")
    at = rows[(rows.solver == solver) & (rows.guidance == float(guidance)) & (rows.intervals == int(intervals))]
    return f"{at.error.item():.2g}"


def on_mode() -> str:
    """Per cent of a student's samples on a mode, lowest to highest mean over seeds, where the exact teacher supports C2."""
    held = of("gmm", "swd_teacher", "supported")
    key = [name for name in ("run", "group", "guidance", "update", "steps") if name in held]
    rows = table(ALL, "metrics").merge(held[key], on=key)
    shares = 100 * rows[rows.method.isin(["CM", "Direct CM"])].groupby([*key, "method"]).on_mode.mean()
    return f"{shares.min():.1g} to {shares.max():.1g}"


def minutes(folder: str) -> str:
    """Of all notebooks behind a results folder, one after the other.

    A notebook that was resumed notes the wall time of its last part, but the time of its whole training: the longer counts.
    """
    records = read(folder, "provenance")["notebooks"].values()
    return f"{sum(max(r.get('wall_seconds', 0), r.get('training_seconds', 0)) for r in records) / 60:.0f}"


def marked(at: pd.Series) -> str:
    """A verdict as the README's table shows it: bold where the claim is supported, in brackets where undecided."""
    form = {"supported": "**{:.3g}**", "contradicted": "{:.3g}", "inconclusive": "({:.3g})"}[at.verdict]
    return form.format(at.value) + f" [{at.low:.3g},&nbsp;{at.high:.3g}]"


def settings_table() -> str:
    """The README's table: both claims, by two judges, in the settings of :data:`SHOWN`."""
    lines = []
    for folder, run, regime in SHOWN:
        ode = row(folder, run, regime, "ode_error")
        name = "2_distill-" + re.split("[@/]", ode.group)[0]
        p = read(folder, "provenance")["notebooks"][f"{run}/{name}" if folder == ALL else name]["parameters"]
        updates = re.search(r"(\d+) updates", regime)
        setting = f"N = {ode.intervals}, lr {p['lr']:g}, {updates[1] if updates else p['updates']} updates"
        line = {"teacher": TEACHERS[run], "setting": f"{setting}, {ode.seeds} seeds", "C1: ODE error": marked(ode)}
        columns = ("C2: distance of samples", "C2: second measure")
        for column, (metric, judge) in zip(columns, JUDGES[run.split("_")[0]].items()):
            measured = metric in set(table(folder).metric)
            line[column] = f"{marked(row(folder, run, regime, metric))} {judge}".strip() if measured else "not measured"
        lines.append(line)
    return compact(lines)


def onset_table() -> str:
    """Both claims while training, at a constant learning rate: the regimes that are named by their updates."""
    rows, lines = table(ALL), []
    named = rows[rows.regime.str.contains(r"\d+ updates$") & (rows.metric == "ode_error")]
    for at in named.itertuples():
        p = read(ALL, "provenance")["notebooks"][f"{at.run}/2_distill-{at.group.split('@')[0]}"]["parameters"]
        line = {"students": f"{at.run}, lr {p['lr']:g}", "updates": re.search(r"(\d+) updates", at.regime)[1]}
        line["C1: ODE error"] = marked(row(ALL, at.run, at.regime, "ode_error"))
        for column, metric in zip(("C2: first measure", "C2: second"), JUDGES[at.family]):
            line[column] = marked(row(ALL, at.run, at.regime, metric))
        lines.append(line)
    return compact(lines)


def compact(lines: list[dict]) -> str:
    """Rows as a markdown table without padding."""
    text = ["| " + " | ".join(lines[0]) + " |", "|" + " --- |" * len(lines[0])]
    return "\n".join(text + ["| " + " | ".join(map(str, line.values())) + " |" for line in lines])


def counts_table() -> str:
    """How often each verdict fell in notebook 7's regimes, by study and measure, and where C1 holds at once."""
    labels = {study["study"]: study["metrics"] for study in read(ALL, "studies").values()}
    lines = []
    for (family, claim, metric), part in table(ALL).groupby(["family", "claim", "metric"], sort=False):
        label = labels[family][metric]["label"] if metric in labels[family] else "ODE error"
        counts = {verdict: int((part.verdict == verdict).sum()) for verdict in VERDICTS}
        lines.append({"study": family, "claim": claim, "measure": label, **counts})
        lines[-1]["C1 and C2 both"] = both(family, metric) if claim == "C2" else ""
    return compact(lines)


def findings() -> str:
    """The README's three findings."""
    c1 = pd.concat([table(folder) for folder in (*STUDIES, ALL)])
    c1 = c1[(c1.claim == "C1") & (c1.seeds >= MIN_SEEDS)]
    held, against = (c1[c1.verdict == verdict] for verdict in VERDICTS[:2])
    exact = of("gmm", "swd_teacher", "supported")
    where = " and ".join(TEACHERS[run].removeprefix("exact, ") for run in exact.run.unique())
    at, slow, fast = (ALL, "cifar10_long", "15000 updates"), (ALL, "gmm_16d_modes", "main"), (ALL, "cifar10", "lr 0.0001")
    return f"""\
1. **C1 holds nearly everywhere.** The Direct CM has the lower ODE error in {len(held)} of the {len(c1)} settings that have a verdict, the higher one in {len(against)}.
2. **C2 is no law, and no accident.** By the distance to the teacher's samples it is supported in {len(exact)} of {count("gmm", "swd_teacher")} regimes of the exact teacher (all in {where}), in {count("digits", "fd_teacher", "supported")} of {count("digits", "fd_teacher")} of digits, and in {count("cifar10", "fd_teacher", "supported")} of {count("cifar10", "fd_teacher")} of CIFAR-10 by one encoder, {count("cifar10", "fd_classifier", "supported")} by another. C1 holds as well in {both("gmm", "swd_teacher")}, {both("digits", "fd_teacher")}, {both("cifar10", "fd_teacher")} and {both("cifar10", "fd_classifier")} of these. Where the CM's own training goes astray, the Direct CM is ahead in both (CIFAR-10 at lr 1e-4, N = 10: ODE error {ratio(*fast, "ode_error")}, distance {ratio(*fast, "fd_teacher")}).
3. **Who judges, decides.** On CIFAR-10 after 15,000 updates at lr 1e-5 the Direct CM's ODE error is {effect(*at, "ode_error")} times the CM's; its distance is {effect(*at, "fd_teacher")} times the CM's by EfficientNet's features and {effect(*at, "fd_classifier")} by a CIFAR-10 classifier's. In 16-D C2 rests on Wasserstein distances: likelihood mostly contradicts it ({ratio(*slow, "nll")} nats in the main setting), and only {on_mode()} % of either student's samples lie on a mode where C2 is supported."""


def dry_run() -> str:
    """The SDXL dry run's table, as ``benchmarks/sdxl_dry_run.py`` wrote it."""
    return (ROOT / "results/sdxl/dry_run.md").read_text().strip()


BLOCKS = {"findings": findings, "settings": settings_table, "counts": counts_table, "onset": onset_table, "sdxl dry run": dry_run}
NUMBERS = {f.__name__: f for f in (effect, ratio, solver_error, on_mode, minutes)}


def filled(text: str) -> str:
    """`text` with every block and every number made anew."""
    for name, made in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda m: f"{m[1]}{made()}\n{m[2]}", text)

    def number(m: re.Match) -> str:
        arguments = [a.strip() for a in (m[2] or "").split(";") if a.strip()]
        return f"<!--{m[1]}{m[2] or ''}-->{NUMBERS[m[1]](*arguments)}<!--/-->"

    return re.sub(rf"<!--({'|'.join(NUMBERS)})( [^>]*?)?-->.*?<!--/-->", number, text)


def main() -> None:
    """Fill every page in place, and name those that changed."""
    for page in PAGES:
        text = page.read_text()
        if filled(text) != text:
            page.write_text(filled(text))
            print(f"{page.relative_to(ROOT)} filled anew")


if __name__ == "__main__":
    main()
