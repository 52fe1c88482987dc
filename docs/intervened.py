"""Tables of workflow/interventions.py for docs/interventions.md, what became of its predictions, and its figure: `python docs/intervened.py`."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dcm.analysis.compare import STABLE, Effect, paired_t, stability
from dcm.analysis.measured import final_one_step, with_final
from dcm.analysis.predictions import Test, outcome
from dcm.analysis.runs import measures
from dcm.analysis.switch import SWITCH, log_ratios
from dcm.figures import style
from dcm.metrics.metric import ENCODERS
from dcm.report.switch import by_role

ROOT = Path(__file__).parents[1]
NAMES = {"gmm16": "16-D mixture", "digits": "digits", "cifar10": "CIFAR-10"}
FIRST, SECOND = SWITCH.values()
COPY, REFERENCE = ("frozen", FIRST[0]), ("plain", FIRST[1])
ERROR = "ODE error"
FROM = {"switch": ("D", FIRST), "from_cm": ("CM", SECOND)}  # by part: the first half, and the methods
# By intervention and which of the methods: the second half.
STUDENTS = {
    ("plain", 0): "D", ("frozen", 0): "copy of the CM", ("ema", 1): "CM, averaged targets", ("frozen", 1): "CM, frozen targets",
    ("features", 0): "D, features in the loss", ("features", 1): "CM, features in the loss",
    ("features_alone", 0): "D, features alone", ("features_alone", 1): "CM, features alone",
}  # fmt: skip


class Said(NamedTuple):
    """A prediction: of which scales and part, the two students compared, of which columns (all distances: None), the sign.

    Sign 0: that of the same comparison's error after the encoder.
    """

    text: str
    scales: list[str]
    part: str
    compared: list[tuple[tuple[str, str], tuple[str, str]]]
    columns: list[str] | None
    sign: int


AFTER = {distance: error for distance, _, error in ENCODERS["cifar10"].values()}
STEADIED = ("slow", "ema", "clipped", "guided_start", "steady")
PREDICTIONS = {
    16: Said("D>D / D>copy of the CM is above 1", ["gmm16", "digits"], "switch", [(("plain", FIRST[0]), COPY)], None, 1),
    17: Said("D>D / D>CM with frozen targets is above 1", ["gmm16", "digits"], "switch", [(("plain", FIRST[0]), ("frozen", FIRST[1]))], None, 1),
    18: Said("D>D / D>CM with averaged targets is above 1", ["gmm16", "digits"], "switch", [(("plain", FIRST[0]), ("ema", FIRST[1]))], None, 1),
    19: Said("D>D is nearer with features in its loss", ["digits"], "switch", [(("features", FIRST[0]), ("plain", FIRST[0]))], ["fd_self"], -1),
    20: Said("C2 is there with features in both losses", ["digits"], "switch", [(("features", FIRST[0]), ("features", FIRST[1]))], ["fd_self"], 1),
    21: Said("w = 9: the CM's own error is lower after a guided start", ["gmm16"], "guided", [(("guided_start", "CM"), ("plain", "CM"))], ["ode_error"], -1),
    22: Said("w = 9: D>D / D>CM stays below 1", ["gmm16"], "guided", [((n, FIRST[0]), (n, FIRST[1])) for n in STEADIED], None, -1),
    23: Said("CM>D / CM>copy of the CM is above 1", ["gmm16", "digits"], "from_cm", [(("plain", SECOND[0]), ("frozen", SECOND[0]))], None, 1),
    24: Said("CM>D is nearer with features in its loss", ["digits"], "from_cm", [(("features", SECOND[0]), ("plain", SECOND[0]))], ["fd_self"], -1),
    25: Said("C2 is there with features in both losses, from a CM", ["digits"], "from_cm", [(("features", SECOND[0]), ("features", SECOND[1]))], ["fd_self"], 1),
    42: Said("CIFAR-10: D>D is nearer with features in its loss", ["cifar10"], "switch", [(("features", FIRST[0]), ("plain", FIRST[0]))], ["fd_self"], -1),
    43: Said("CIFAR-10: C2 is there with features in both losses", ["cifar10"], "switch", [(("features", FIRST[0]), ("features", FIRST[1]))], ["fd_self"], 1),
    44: Said("the same, by the encoders that are in no loss", ["cifar10"], "switch", [(("features", FIRST[0]), ("features", FIRST[1]))], ["fd_teacher", "fd_classifier"], 1),
    47: Said("the same: C2's sign is that of the error after the encoder", ["cifar10"], "switch", [(("features", FIRST[0]), ("features", FIRST[1]))], None, 0),
}  # fmt: skip


@cache
def rows_of(name: str, folder: str = "interventions") -> pd.DataFrame:
    """A table of what a script measured; of what it has not yet, one without rows."""
    path = ROOT / f"results/{folder}/{name}.csv"
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["part", "intervention"])


def distances(rows: pd.DataFrame) -> dict[str, str]:
    """Columns of distances to the teacher's samples, and how they read."""
    study = "gmm" if "swd_teacher" in rows else "cifar10" if "fd_classifier" in rows else "digits"
    return {c: metric.label for c, (role, metric) in measures(study).items() if role == "teacher" and c in rows}


def compared(rows: pd.DataFrame, part: str, a: tuple[str, str], b: tuple[str, str], column: str, back: int = 0) -> Effect:
    """The ratio of two students (intervention, method), paired by seed; `b` at the update before the last with ``back`` = 1."""
    rows = rows[rows.part == part]

    def of(student: tuple[str, str], back: int) -> pd.Series:
        own = rows[(rows.intervention == student[0]) & (rows.method == student[1])]
        at = sorted(own["update"].unique())[-1 - back]
        return np.log(own[own["update"] == at].set_index("seed")[column])

    return paired_t((of(a, 0) - of(b, back)).dropna().to_numpy())


def shown(e: Effect) -> str:
    """A ratio with its interval."""
    return "{:.3g} [{:.3g},&nbsp;{:.3g}]".format(*np.exp([e.value, e.low, e.high]))


def stable(rows: pd.DataFrame, name: str) -> bool:
    """Whether the CM's own error did not rise in the last quarter."""
    return not compared(rows, "guided", (name, "CM"), (name, "CM"), "ode_error", back=1).low > 0


def outcomes() -> str:
    """A line a prediction."""
    lines = []
    for number, said in PREDICTIONS.items():
        parts: list[list[Test]] = []
        for rows in map(rows_of, said.scales):
            have = set(rows.intervention[rows.part == said.part])
            for a, b in said.compared:
                if not {a[0], b[0]} <= have:
                    parts.append([])
                    continue
                sound = said.columns is not None or said.part != "guided" or stable(rows, a[0])
                each = {c: compared(rows, said.part, a, b, c) for c in said.columns or distances(rows)}
                there = lambda c: int(np.sign(compared(rows, said.part, a, b, AFTER[c]).value))
                parts.append([(said.sign or there(c), e.value, e.p, sound) for c, e in each.items()])
        state, why = outcome(parts)
        lines.append(f"{number}. {said.text}: **{state}** ({why}).")
    return "\n".join(lines)


def ratios() -> pd.DataFrame:
    """Every student's ODE error and distances as ratios to the plain CM's from the same weights, a line a measure."""
    lines = []
    for (scale, name), (part, (first, methods)) in product(NAMES.items(), FROM.items()):
        rows = rows_of(scale)
        measured = {"ode_error": ERROR} | {c: label.partition(", ")[2] for c, label in distances(rows).items()}
        for (intervention, which), says in STUDENTS.items():
            if intervention in set(rows.intervention[rows.part == part]):
                for column, measure in measured.items():
                    e = compared(rows, part, (intervention, methods[which]), ("plain", methods[1]), column)
                    lines.append((name, first, says, measure, e))
    return pd.DataFrame(lines, columns=["scale", "first", "second", "measure", "effect"])


def switch_table() -> list[dict]:
    """Every student, a line each."""
    lines = []
    for (scale, first, second), own in ratios().groupby(["scale", "first", "second"], sort=False):
        error, *far = (f"{shown(e)} {measure}" for measure, e in zip(own.measure, own.effect))
        lines.append({"": scale, "halves": f"{first}>{second}", "ODE error": error.removesuffix(f" {ERROR}"), "distance to the teacher's samples": "; ".join(far)})
    return lines


def figure() -> Figure:
    """The same: a row of panels a scale, a column a first half, a line a second half."""
    found = ratios()
    look = dict(zip(found.measure.unique(), zip("D" + "o" * 9, ["black", *style.CLASS_COLOURS])))
    lines = {scale: list(dict.fromkeys(own.second)) for scale, own in found.groupby("scale", sort=False)}
    heights = [len(seconds) for seconds in lines.values()]
    made, axes = plt.subplots(len(lines), 2, figsize=(style.WIDTH, 1.6 + 0.33 * sum(heights)), sharex=True, sharey="row", height_ratios=heights)
    for row, (scale, seconds) in zip(axes, lines.items()):
        for ax, (first, _) in zip(row, FROM.values()):
            own = found[(found.scale == scale) & (found["first"] == first)]
            measures = [*dict.fromkeys(own.measure)]
            for line in own.itertuples():
                at = seconds.index(line.second) + 0.17 * (measures.index(line.measure) - (len(measures) - 1) / 2)
                value, low, high = np.exp([line.effect.value, line.effect.low, line.effect.high])
                marker, colour = look[line.measure]
                ax.errorbar(value, at, xerr=[[value - low], [high - value]], fmt=marker, color=colour, ms=5, lw=1.2)
            if not len(own):
                ax.set_axis_off()
                continue
            ax.axvline(1, color="black", lw=0.8)
            ax.set_title(f"{scale}, from a {'CM' if first == 'CM' else 'Direct CM'}")
            ax.set_yticks(range(len(seconds)), seconds)
            ax.set_ylim(len(seconds) - 0.4, -0.6)
            ax.tick_params(labelbottom=True)
    style.scale(axes[-1, 0], "x", [np.exp(v) for e in found.effect for v in (e.low, e.high)])
    made.supxlabel("ratio to the plain CM from the same weights", fontsize=9)
    keys = [plt.Line2D([], [], marker=marker, color=colour, ls="", label=measure) for measure, (marker, colour) in look.items()]
    axes[-1, 1].legend(handles=keys, loc="center")
    return made


def sweep_table() -> list[dict]:
    """The switch over guidance and N, from a first half of the Direct objective."""
    found, lines = rows_of("verdicts", "switch"), []
    found = found[(found.pair == next(iter(SWITCH))) & ~found.group.isin(["restart", "full"])]
    for (scale, n, w), rows in found.sort_values(["intervals", "guidance"]).groupby(["scale", "intervals", "guidance"], sort=False):
        c1, c2, *_ = by_role(rows).values()
        lines.append({"": scale, "N": n, "w": f"{w:g}", "ODE error": c1, "distance to the teacher's samples": c2})
    return sorted(lines, key=lambda line: [*found.scale.unique()].index(line[""]))


def guided_table() -> list[dict]:
    """What each intervention does to a guided CM, and to the two claims."""
    rows, lines = rows_of("gmm16"), []
    for name in ("plain", *STEADIED):
        line = {"": name, "the CM is stable": "yes" if stable(rows, name) else "no"}
        line["the CM's error / plain"] = "1" if name == "plain" else shown(compared(rows, "guided", (name, "CM"), ("plain", "CM"), "ode_error"))
        for pair, (a, b) in SWITCH.items():
            for claim, column in (("C1", "ode_error"), ("C2", "swd_teacher")):
                line[f"{claim}, {pair}"] = shown(compared(rows, "guided", (name, a), (name, b), column))
        lines.append(line)
    return lines


CELL = ["dimension", "modes_per_class", "width"]
# By prediction of docs/preregistration.md: what it says, the cells that differ by one step, and the sign of the change.
STEPS = {
    11: ("C2 rises with the dimension", [((d, m, 64), (2 * d, m, 64)) for m in (4, 12) for d in (2, 4, 8)], 1),
    12: ("C2 is higher with 12 modes than with 4", [((d, 4, 64), (d, 12, 64)) for d in (2, 4, 8, 16)], 1),
    13: ("C2 falls with the width", [((16, 12, w), (16, 12, 2 * w)) for w in (32, 64, 128)], -1),
}


def difficulty() -> tuple[list[dict], list[str]]:
    """The switch by cell of workflow/difficulty.py, and what became of the predictions about it."""
    rows, lines, logs = with_final(rows_of("metrics", "difficulty"), CELL), [], {}
    stable = stability(rows, CELL) == STABLE
    for cell, part in final_one_step(rows).groupby(CELL, sort=False):
        line = dict(zip(CELL, cell), rate=f"{part.lr.iloc[0]:g}", **{"the CM is stable": "yes" if stable[cell] else "no"})
        for pair, methods in SWITCH.items():
            for claim, column in (("C1", "ode_error"), ("C2", "swd_teacher")):
                logs[pair, claim, cell] = log_ratios(part, methods, column)
                line[f"{claim}, {pair}"] = shown(paired_t(logs[pair, claim, cell].to_numpy()))
        lines.append(line)
    said, c2 = [], {cell: logs[next(iter(SWITCH)), "C2", cell] for cell in stable.index}
    for number, (says, steps, sign) in STEPS.items():
        change = {(a, b): paired_t((c2[b] - c2[a]).to_numpy()) for a, b in steps if a in c2 and b in c2}
        tests = [[(sign, e.value, e.p, stable[a] and stable[b])] for (a, b), e in change.items()]
        state, why = outcome(tests + [[]] * (len(steps) - len(tests)))
        said.append(f"{number}. {says}: **{state}** ({why}).")
    return lines, said


if __name__ == "__main__":
    style.use_style()
    figure().savefig(ROOT / "docs" / "interventions.png", metadata={"Software": None})
