"""Fill the generated parts of README.md and docs/*.md from results/: ``python docs/fill.py``. Twice changes nothing.

<!-- NAME --> .. <!-- end -->        a block, made by ``BLOCKS[NAME]``
<!--NAME ARG; ARG-->1.23<!--/-->     a number inside a sentence, made by ``NUMBERS[NAME]``
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import intervened
import miniature
import numpy as np
import pandas as pd
import rehearsed

from dcm.analysis.compare import STABLE, VERDICTS, interval
from dcm.analysis.measured import final_one_step, with_final
from dcm.analysis.switch import FEW_STEPS, SWITCH, beside_errors, from_equal_weights, log_ratios, same_side

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = "regimes_all"
PAIRS = tuple(SWITCH)


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
    return interval(row(folder, run, regime, metric))


def ratio(folder: str, run: str, regime: str, metric: str) -> str:
    """An effect alone."""
    return f"{row(folder, run, regime, metric).value:.3g}"


def with_c1(rows: pd.DataFrame) -> int:
    """In how many of notebook 7's regimes a measure's `rows` support C2 while C1 is supported as well."""
    every, key = table(ALL), ["run", "regime"]
    c1 = every[(every.metric == "ode_error") & (every.verdict == "supported")]
    return len(rows[rows.verdict == "supported"].merge(c1[key], on=key))


def solver_error(folder: str, solver: str, guidance: str, intervals: str) -> str:
    """A solver's mean squared error to the best known solution."""
    rows = table(folder, "solver_error")
    at = rows[(rows.solver == solver) & (rows.guidance == float(guidance)) & (rows.intervals == int(intervals))]
    return f"{at.error.item():.2g}"


def minutes(folder: str) -> str:
    """Of all notebooks behind a results folder, one after the other.

    A notebook that was resumed notes the wall time of its last part, but the time of its whole training: the longer counts.
    """
    records = read(folder, "provenance")["notebooks"].values()
    return f"{sum(max(r.get('wall_seconds', 0), r.get('training_seconds', 0)) for r in records) / 60:.0f}"


def marked(at: pd.Series) -> str:
    """A verdict as the README's table shows it: bold where the claim is supported, in brackets where undecided."""
    form = {"supported": "**{:.3g}**", "contradicted": "{:.3g}", "inconclusive": "({:.3g})"}.get(at.verdict, "{:.3g} (unstable CM)")
    return form.format(at.value)


def compact(lines: list[dict]) -> str:
    """Rows as a markdown table without padding."""
    text = ["| " + " | ".join(lines[0]) + " |", "|" + " --- |" * len(lines[0])]
    return "\n".join(text + ["| " + " | ".join(map(str, line.values())) + " |" for line in lines])


def counts_table() -> str:
    """How often each verdict fell in notebook 7's regimes, by study and measure, and where C1 holds at once."""
    rows, lines = table(ALL), []
    for (study, claim, label), part in rows[rows.role.isin(["error", "teacher", "data"])].groupby(["study", "claim", "label"], sort=False):
        counts = {verdict: int((part.verdict == verdict).sum()) for verdict in VERDICTS}
        lines.append({"study": study, "claim": claim, "measure": label, **counts, "C1 and C2 both": with_c1(part) if claim == "C2" else ""})
    return compact(lines)


@cache
def switch_rows(name: str = "verdicts") -> pd.DataFrame:
    """The main settings' rows of the switch, or of its accounting; of digits and the 16-D mixture one, of the emoji the paper's and that whose CM learns."""
    rows = table("switch", name)
    named = [f"{'guided ' * (r.guidance > 2)}{r.scale}, N = {r.intervals}, w = {r.guidance:g}" for r in rows.itertuples()]
    learns = (rows.run == "emoji_long") & (rows.group == "w2")
    return rows.assign(name=named)[learns | rows.main & ~rows.run.isin(["gmm16_w3", "digits_sweep", "digits_further", "emoji", "emoji_long", "emoji_cpu"])]


def short_names(names: pd.Series) -> dict[str, str]:
    """Names without N and w, but with N where a scale has another one before."""
    first: dict[str, str] = {}
    parts = {name: (name.partition(",")[0], name.split(", ")[-2]) for name in names.unique()}
    return {name: f"{scale} at {N}" if first.setdefault(scale, N) != N else scale for name, (scale, N) in parts.items()}


def span(values: pd.Series) -> str:
    """The range of ratios or logarithms."""
    return " to ".join(dict.fromkeys(f"{v:.2f}" for v in (values.min(), values.max())))


def between(scale: str, pair: str, role: str, encoder: str = "") -> str:
    """The range of the ratios of a scale's main setting: of a pair of methods, or of both of the switch; by an `encoder`."""
    rows = switch_rows()
    pairs = PAIRS if pair == "switch" else [pair.replace(" to ", ">")]  # a comment can have no >
    found = rows[rows.name.str.startswith(scale) & rows.pair.isin(pairs) & (rows.role == role) & rows.label.str.endswith(encoder)]
    return span(found.value)


def by_all(rows: pd.DataFrame, pairs: tuple[str, ...], wanted: dict[str, str]) -> list[str]:
    """The settings in which every measure of a role has the wanted verdict in all `pairs`."""
    asked = rows[rows.pair.isin(pairs) & rows.role.isin(list(wanted))]
    right = (asked.verdict == asked.role.map(wanted)).groupby(asked.name, sort=False).all()
    return list(right.index[right])


def on_mode(name: str, method: str) -> str:
    """Percent of one-step samples on a mode of the mixture, at the end of a setting that is called so."""
    measured = table("switch", "metrics")
    at = measured[measured.final & (measured.method == method)].merge(switch_rows().drop_duplicates("name")[["run", "group", "intervals", "guidance", "name"]])
    return f"{100 * at[at.name.str.startswith(name)].on_mode.mean():.1f}"


def ranked(error: str, study: str, role: str = "teacher") -> str:
    """In how many comparisons from equal weights an error ranks the two as their samples do; in every setting of a study."""
    points = beside_errors(from_equal_weights(table("switch")), role)
    same = same_side(points[points.study == study], error)
    return f"{same.sum()} of {len(same)}"


def findings() -> str:
    """The README's findings, from the main settings of the switch."""
    rows = switch_rows()
    clear = rows[rows.cm == STABLE]
    equal, names = from_equal_weights(rows), list(clear.name.unique())
    held = by_all(clear, PAIRS, {"error": "supported", "teacher": "supported"})
    unstable = rows.name[rows.cm != STABLE].unique()
    at = equal[equal.name.isin(held)]
    scale = short_names(rows.name).get
    teachers = equal[equal.role == "teacher"]
    worse = [name for name, own in teachers.groupby("name", sort=False) if (own.verdict == "supported").any()]  # in one step
    listed = lambda names: " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:]))) or "none"
    places = lambda names: listed([f"{'the ' * ('mixture' in name)}{scale(name)}" for name in names])
    further = {
        "By some measures, or from one first half alone, they are worse on": [n for n in worse if n not in held],
        "They are not on": [n for n in names if n not in worse], "No verdict for want of a stable CM on": unstable,
    }  # fmt: skip
    rest = "".join(f" {words} {places(which)}." for words, which in further.items() if len(which))
    few = clear[clear.pair.isin(FEW_STEPS) & (clear.role == "teacher")]
    fewer = lambda k: few[few.name.isin(worse) & few.pair.str.endswith(f"{k} steps")]
    still = few[few.verdict == "supported"].drop_duplicates(["name", "label"])
    left = "; ".join(f"{scale(e.name)}, {e.label.partition(', ')[2]} encoder" for e in still.itertuples(index=False))
    nearest = lambda m: (by_all(clear, (f"{m} / CM", f"{m} / Direct CM"), {"teacher": "contradicted"}), list(clear[clear.pair == f"{m} / Direct CM"].name.unique()))
    annealed, asked = nearest("anneal")
    switched, of = map(len, nearest("direct>cm"))
    cost = switch_rows("costs").groupby("method").relative
    told = table("switch", "predictions").outcome.value_counts()
    ratio = lambda study, part, a, b, column: np.exp(intervened.compared(intervened.rows_of(study), part, a, b, column).value)
    far = lambda student: ratio("gmm16", "switch", student, intervened.REFERENCE, "swd_teacher")
    seeing = lambda column: ratio("cifar10", "switch", ("features", intervened.FIRST[0]), intervened.REFERENCE, column)
    nearer = pd.Series([seeing(c) for c in intervened.distances(intervened.rows_of("cifar10"))])
    on_digits = ratio("digits", "from_cm", *(("features", m) for m in intervened.SECOND), "fd_self")
    cells = final_one_step(with_final(intervened.rows_of("metrics", "difficulty"), intervened.CELL)).groupby(intervened.CELL)
    harder = lambda cell: f"{np.exp(log_ratios(cells.get_group(cell), SWITCH[PAIRS[0]], 'swd_teacher').mean()):.3g}"
    return f"""\
1. **From the same weights, the Direct objective solves the ODE better and its samples are worse**, by every measure, on {places(held)}: its ODE error is {span(at.value[at.role == "error"])} times the CM's, its samples' distance {span(at.value[at.role == "teacher"])} times.{rest}
2. **It is a matter of one step.** Where samples are worse in one, in two the same students rank the other way, or it is undecided: the distance is {span(fewer(2).value)} times the CM's, and in four steps {span(fewer(4).value)}. Worse in few steps: {left or "nowhere"} ([table](results/switch/README.md#few_steps)).
3. **On CIFAR-10 and emoji, who solves the ODE better in an encoder's features has the better samples by that encoder**, in {ranked("value_there", "cifar10")} and {ranked("value_there", "sdxl")} comparisons; by the ODE error itself in {ranked("c1", "cifar10")} and {ranked("c1", "sdxl")}. On digits in {ranked("value_there", "digits")} (by the ODE error {ranked("c1", "digits")}); by distance to data, on CIFAR-10, in {ranked("value_there", "cifar10", role="data")} ({ranked("c1", "cifar10", role="data")}). In part that is arithmetic: the error bounds the distance.
4. **Direct first, CM last is best in one step**: halving *h* from N to 1 in training gives nearer samples than either objective alone, by every measure, in {len(annealed)} of {len(asked)} settings (not on {places([n for n in asked if n not in annealed])}), with {span(cost.get_group('anneal'))} of the Direct CM's teacher evaluations; one switch from Direct to CM in {switched} of {of}. Of {told.sum()} [predictions](docs/preregistration.md) {told.get('held', 0)} held, {told.get('failed', 0)} failed, {told.get('open', 0)} are open ([table](results/switch/README.md#predictions)).
5. **On CIFAR-10 C2 goes when the loss sees features; regression as such does no harm.** With a self-supervised encoder's features beside the squared error, the Direct CM has {seeing("ode_error"):.2f} times the CM's ODE error *and* {span(nearer)} times its distance, by every encoder, those in no loss included. On digits C2 stays ({on_digits:.2f}, from a CM's first half); we had predicted it here, too. On the 16-D mixture a copy of a trained CM by plain regression has the CM's samples, {far(intervened.COPY):.2f} times its distance; of the ODE's solution {far(("plain", "Direct CM")):.2f} times. C2 there comes where the map is hard for the student: it rises from {harder((2, 12, 64))} in 2 dimensions to {harder((16, 12, 64))} in 16, and falls to {harder((16, 12, 256))} at four times the width ([interventions](docs/interventions.md))."""


def switch_table() -> str:
    """The README's figure and table: both claims from equal weights in the main settings, a line each."""
    rows, lines = switch_rows(), []
    for name, own in rows[rows.pair.isin(PAIRS)].groupby("name", sort=False):
        line = {"setting": name}
        for pair in PAIRS:
            for role, column in (("error", f"{pair}: C1"), ("teacher", f"{pair}: C2")):
                line[column] = ", ".join(marked(e) for _, e in own[(own.pair == pair) & (own.role == role)].iterrows())
        lines.append(line)
    return "![From equal weights: where each objective leads, in ODE error and distance of samples](results/switch/switch.png)\n\n*C1: from one point the blue arrow ends left of the orange one. C2: it ends above.*\n\n" + compact(lines)


def rates_table() -> str:
    """Own ODE errors at the end of training by learning rate; the lowest of a setting and method is bold."""
    lines = []
    for path in sorted((ROOT / "results/learning_rates").glob("*.csv")):
        ends = final_one_step(with_final(pd.read_csv(path), ["group", "lr"]))
        for (group, n, w, method), part in ends.groupby(["group", "intervals", "guidance", "method"]):
            means = part.groupby("lr")["ode_error"].mean()
            cells = {f"{lr:g}": f"**{e:.3g}**" if lr == means.idxmin() else f"{e:.3g}" for lr, e in means.items()}
            setting = f"{path.stem}: {group}, N = {n}, w = {w:g}"
            lines.append({"setting": setting, "method": method, "seeds": part.seed.nunique()} | cells)
    found = pd.DataFrame(lines)
    rates = sorted((c for c in found if c not in ("setting", "method", "seeds")), key=float)
    return compact(found[["setting", "method", "seeds", *rates]].fillna("").to_dict("records"))


def difficulty_table() -> str:
    """The switch by cell of workflow/difficulty.py, and what became of the predictions about it."""
    lines, said = intervened.difficulty()
    return compact(lines) + "\n\nThe predictions, on C2 by D>D / D>CM:\n\n" + "\n".join(said)


def interventions_table() -> str:
    """The switch with one part of its second half changed, and what became of the predictions about it."""
    lines = intervened.switch_table()
    return f"<details><summary>The figure's numbers: {len(lines)} lines</summary>\n\n{compact(lines)}\n\n</details>\n\nThe predictions:\n\n" + intervened.outcomes()


def guided_table() -> str:
    """What makes a guided CM stable, and the two claims then."""
    return compact(intervened.guided_table())


def emoji_model() -> str:
    """The small model of SDXL's kind: what it is, and how good."""
    said, lines = miniature.quality()
    return f"{compact(miniature.model())}\n\n{said}\n\n{compact(lines)}"


def emoji_results() -> str:
    """What the study on it measured."""
    return f"{compact(miniature.ratios())}\n\nODE errors in one step while they train, means over seeds:\n\n{compact(miniature.while_training())}\n\nSampled in two and four steps, with fresh noise between them:\n\n{compact(miniature.ratios(tuple(FEW_STEPS)))}"


def dry_run() -> str:
    """What ``benchmarks/sdxl_dry_run.py`` wrote."""
    return (ROOT / "results/sdxl/dry_run.md").read_text().strip()


def rehearsals() -> str:
    """SDXL's rehearsals, stage by stage."""
    said, tables = rehearsed.stages()
    return "\n\n".join([said, *map(compact, tables)])


def two_gpus() -> str:
    """SDXL's students trained by one process and by two."""
    said, rows, went_on = rehearsed.processes()
    return f"{said}\n\n{compact(rows)}\n\n{went_on}"


BLOCKS = {"findings": findings, "switch": switch_table, "counts": counts_table, "rates": rates_table, "difficulty": difficulty_table, "interventions": interventions_table, "guided": guided_table, "sweep": lambda: compact(intervened.sweep_table()), "emoji": emoji_model, "emoji results": emoji_results, "emoji terms": miniature.shares, "sdxl dry run": dry_run, "sdxl rehearsal": rehearsals, "sdxl two GPUs": two_gpus}
NUMBERS = {f.__name__: f for f in (effect, ratio, solver_error, minutes, between, on_mode, ranked)}


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
