"""From the tables of one study to sentences."""

import pandas as pd

from dcm.analysis.compare import MIN_SEEDS, UNKNOWN, UNSTABLE, VERDICTS, interval
from dcm.analysis.measured import SETTING
from dcm.analysis.tables import with_ode_error
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


def span(values) -> str:
    """The range of whole numbers."""
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def counted(table: pd.DataFrame) -> str:
    """How often each verdict fell, and how often there is none for want of a stable CM."""
    none = int(table.verdict.isin([UNSTABLE, UNKNOWN]).sum())
    counts = [f"{int((table.verdict == v).sum())} {v}" for v in VERDICTS]
    return ", ".join(counts + [f"{none} without a stable CM"] * (none > 0))


def behind(rows: pd.DataFrame) -> str:
    """What stands behind a figure of `rows`, for its caption: setting, seeds, updates."""
    first = rows.iloc[0]
    texts = {"solver": SOLVER_NAMES[first.solver], "intervals": f"N = {first.intervals}", "guidance": f"w = {first.guidance:g}"}
    setting = ", ".join(text for column, text in texts.items() if rows[column].nunique() == 1)
    seeds = rows.groupby([*SETTING, "horizon"]).seed.nunique()
    band = "; bands are one standard deviation" if seeds.max() > 1 else ""
    return f"{setting}{'; ' * bool(setting)}{span(seeds)} seeds, {rows['update'].max()} updates{band}."


def at_main(claims: pd.DataFrame, group: str, guidance: float, primary: str) -> pd.DataFrame:
    """The two claims, the second by the `primary` metric, at the main setting."""
    judged = (claims.claim == "C1") | (claims.metric == primary)
    return claims[(claims.group == group) & (claims.guidance == guidance) & judged]


def verdict_lines(main: pd.DataFrame, metrics: dict[str, Metric], numbers: bool = True) -> list[str]:
    """A line a claim of :func:`at_main`: the verdict, what it says, what was measured; and one for all encoders together."""
    of, lines = with_ode_error(metrics), []
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
    return [said, *(far.format(r.fd_real) + f", and {r.agreement:.1%} of them agree with their class." for r in real)]
