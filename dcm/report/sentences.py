"""What is read of one study: tables with labels and rounded numbers, and sentences."""

import numpy as np
import pandas as pd

from dcm.analysis.compare import MIN_SEEDS, ODE_ERROR, UNKNOWN, UNSTABLE, VERDICTS, interval
from dcm.analysis.measured import SETTING, constant, final_one_step
from dcm.metrics.metric import Metric
from dcm.solvers import SOLVER_NAMES

MEANING = {  # of a claim's verdicts
    "C1": ("the Direct CM solves the ODE better", "the Direct CM does not solve the ODE better, but worse",
           "it is open which of the two solves the ODE better"),
    "C2": ("the Direct CM's samples are worse", "the Direct CM's samples are not worse, but better",
           "it is open whose samples are worse"),
}  # fmt: skip
NO_VERDICT = {
    UNSTABLE: "no verdict, since the CM's own ODE error rises at the end",
    UNKNOWN: "no verdict, since the CM's course is not known",
}


def main_table(rows: pd.DataFrame, teacher: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1: method x solver in one step, at the main guidance and grid, mean and spread (0 for one seed) over seeds.

    In the order of horizons; after them, students whose horizon changed.

    `rows` : students of the settings to show. `teacher` : the teacher's own rows.
    """
    own, names = teacher.assign(method="teacher", horizon=0, seeds=0, updates=0, ode_error=0.0), ["ode_error", *metrics]
    by_method = final_one_step(rows).groupby(["solver", "horizon", "method"])
    measured = by_method[names]
    spread = measured.std().add_suffix("_sd")
    spread[by_method.size() == 1] = 0.0
    counts = by_method.agg(seeds=("seed", "size"), updates=("update", "first"))
    students = pd.concat([counts, measured.agg(lambda of_seeds: of_seeds.mean()), spread], axis=1).reset_index()
    stood = students.method.isin(constant(rows).method)
    students["horizon"] = students.horizon.where(stood, np.inf)  # those that changed come last
    table = pd.concat([own, students]).sort_values(["solver", "horizon"], kind="stable", ignore_index=True)
    return table[["method", "solver", "seeds", "updates", *(c for name in names for c in (name, f"{name}_sd"))]]


def readable_main(table: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """tab1 with a line a metric, by its label, of those that were measured at all, and a column a method: ``mean ± spread``."""
    out = table[["method", "solver"]].copy()
    for column in ("seeds", "updates"):
        out[column] = table[column].astype(object).where(table.method != "teacher", "")
    there = {name: metric for name, metric in ({"ode_error": ODE_ERROR} | metrics).items() if table[name].notna().any()}
    for name, metric in there.items():
        arrow = "" if not metric.judged or name == "ode_error" else " ↓" if metric.lower_is_better else " ↑"
        out[metric.label + arrow] = [
            "not measured" if pd.isna(m) else f"{m * (abs(m) > 1e-6):.3g}" + ("" if pd.isna(s) else f" ± {s:.2g}")  # but for rounding
            for m, s in zip(table[name], table[f"{name}_sd"])
        ]
    each = [own.drop(columns="solver").set_index("method").T.assign(solver=SOLVER_NAMES[name]) for name, own in out.groupby("solver", sort=False)]
    lines = pd.concat(each).fillna("").reset_index(names="measure")
    return lines[["solver", *lines.columns.drop("solver")]]


def readable_claims(claims: pd.DataFrame, metrics: dict[str, Metric]) -> pd.DataFrame:
    """The verdicts of a study with labels and rounded intervals."""
    label = {"ode_error": ODE_ERROR.label} | {name: metric.label for name, metric in metrics.items()}
    table = pd.DataFrame(
        {
            "claim": claims.claim, "solver": claims.solver.map(SOLVER_NAMES), "N": claims.intervals,
            "w": claims.guidance.map("{:g}".format), "group": claims.group, "metric": claims.metric.map(label),
            "Direct CM against CM": claims.effect + " " + claims.apply(interval, axis=1),
            "seeds": claims.seeds, "verdict": claims.verdict, "over encoders": claims.encoders,
        }
    )  # fmt: skip
    return table if claims.encoders.any() else table.drop(columns="over encoders")


def counted(table: pd.DataFrame) -> str:
    """How often each verdict fell, and how often there is none for want of a stable CM."""
    none = int(table.verdict.isin([UNSTABLE, UNKNOWN]).sum())
    counts = [f"{int((table.verdict == v).sum())} {v}" for v in VERDICTS]
    return ", ".join(counts + [f"{none} without a stable CM"] * (none > 0))


def behind(rows: pd.DataFrame) -> str:
    """What stands behind a figure of `rows`, for its caption: setting, seeds, updates."""
    at = rows.iloc[0]
    texts = {"solver": SOLVER_NAMES[at.solver], "intervals": f"N = {at.intervals}", "guidance": f"w = {at.guidance:g}"}
    setting = ", ".join(text for column, text in texts.items() if rows[column].nunique() == 1)
    seeds = rows.groupby([*SETTING, "horizon"]).seed.nunique()
    span = " to ".join(map(str, dict.fromkeys([seeds.min(), seeds.max()])))
    band = "; bands are one standard deviation" if seeds.max() > 1 else ""
    return f"{setting}{'; ' * bool(setting)}{span} seeds, {rows['update'].max()} updates{band}."


def at_main(claims: pd.DataFrame, group: str, guidance: float, primary: str) -> pd.DataFrame:
    """The two claims, the second by the `primary` metric, at the main setting."""
    judged = (claims.claim == "C1") | (claims.metric == primary)
    return claims[(claims.group == group) & (claims.guidance == guidance) & judged]


def verdict_lines(main: pd.DataFrame, metrics: dict[str, Metric], numbers: bool = True) -> list[str]:
    """A line a claim of :func:`at_main`: the verdict, what it says, what was measured; and one for all encoders together."""
    of, lines = {"ode_error": ODE_ERROR} | metrics, []
    for r in main.itertuples():
        against = "{} times the CM's" if r.effect == "ratio" else "differs from the CM's by {}"
        measured = f": {of[r.metric].label} {against.format(interval(r))}, {r.seeds} seeds" if numbers else ""
        meaning = NO_VERDICT | dict(zip(VERDICTS, MEANING[r.claim]))
        lines.append(f"{r.claim} {r.verdict}: {meaning[r.verdict]}{measured}")
        lines += [f"C2 over all encoders: {r.encoders}"] * bool(r.encoders)
    return lines


def takeaway(main: pd.DataFrame, claims: pd.DataFrame, metrics: dict[str, Metric], primary: str) -> str:
    """What a study says of the paper's two claims: at the main setting, and how often over all, C2 by the `primary` metric."""
    lines = [f"**Takeaway.** At the main setting {'; '.join(verdict_lines(main, metrics))}."]
    for claim, name in (("C1", "ode_error"), ("C2", primary)):
        part = claims[(claims.claim == claim) & (claims.metric == name)]
        enough = part[part.seeds >= MIN_SEEDS]
        few = f" ({n} more have too few seeds)" if (n := len(part) - len(enough)) else ""
        each = [f"{n} {said}" for said, n in enough.encoders[enough.encoders != ""].value_counts().items()]
        together = f"; over all encoders: {', '.join(each)}" * bool(each)  # where there are several
        lines.append(f"{claim} over {len(enough)} setting{'s' * (len(enough) != 1)}{few}: {counted(enough)}{together}.")
    return " ".join(lines)


def notes(quality, teacher: pd.DataFrame, samples: int) -> list[str]:
    """What helps to read the numbers of a study's `quality`: its background and, for images, how far real ones are apart."""
    far = "For scale: as many real training images have a Frechet distance of {:.3g} to the held-out ones"
    real = teacher[teacher.solver == "real images"].itertuples()
    said = f"Quality is measured on {samples} samples of each student. {quality.note}"
    agree = ", and {:.1%} of them agree with their class" if "agreement" in teacher else ""
    return [said, *(far.format(r.fd_real) + (agree and agree.format(r.agreement)) + "." for r in real)]
