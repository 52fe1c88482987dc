"""From the tables of all regimes to sentences."""

from __future__ import annotations

import pandas as pd

from dcm.analysis.compare import interval
from dcm.analysis.runs import FURTHER, REGIME
from dcm.report.regimes import Regimes
from dcm.report.sentences import agreed, counted


def _names(regimes: pd.DataFrame) -> str:
    return "; ".join(regimes.run + ", " + regimes.regime) or "none"


def _said(claim: pd.Series) -> str:
    return f"{claim.run}, {claim.regime}: ratio {interval(claim)}, {claim.seeds} seeds ({claim.verdict})"


def _supported_by_all(*claims: pd.DataFrame) -> pd.DataFrame:
    """The regimes that every one of these tables of claims supports."""
    first, *others = (t[t.verdict == "supported"] for t in claims)
    for other in others:
        first = first.merge(other[REGIME], on=REGIME)
    return first


def what_was_run(found: Regimes) -> str:
    """What is compared, counted."""
    parts = []
    for r in found.runs:
        students = r.rows.drop_duplicates(["group", "guidance", "method", "seed"])
        own = found.claims[found.claims.run == r.name]
        shape = " x ".join(map(str, r.facts.shape)) + (f", {r.facts.modes} modes a class" if r.facts.modes else "")
        about = f"**{r.name}** ({r.family}, samples of shape {shape}; at most {own.seeds.max()} seeds)"
        parts.append(f"{about}: {len(students)} students, {own.groupby(REGIME).ngroups} regimes")
    return f"Compared: {'; '.join(parts)}."


def where_c2_holds(found: Regimes) -> list[str]:
    """By study and encoder: counts, where both claims hold by both distances, and the extremes; over all encoders: counts."""
    lines = []
    for family in found.families:
        first = found.of(family)[0]
        claims = found.claims[found.claims.family == family]
        c1 = claims[claims.metric == "ode_error"]
        lines.append(f"**{family}.** C1 over its regimes, where it is defined: {counted(c1)}.")
        for to_teacher, to_data in [(first.primary, first.against_data), *FURTHER.items()]:
            teacher, data = claims[claims.metric == to_teacher], claims[claims.metric == to_data]
            if not len(teacher):
                continue
            further = "" if to_teacher == first.primary else ", by a further encoder"
            best = teacher.sort_values("value")
            lines.append(
                f"**{family}{further}** ({first.metrics[to_teacher].label}). C2 by the distance to the teacher's samples: "
                f"{counted(teacher)}; by the distance to data: {counted(data)}. Regimes that support C1, and C2 by both "
                f"distances: {_names(_supported_by_all(c1, teacher, data))}. Strongest for C2: {_said(best.iloc[-1])}; against "
                f"it: {_said(best.iloc[0])}."
            )
        if said := agreed(claims[claims.role == "teacher"]):
            lines.append(f"**{family}, over all encoders** (distances to the teacher's samples): {said}.")
    return lines


def while_training(found: Regimes) -> list[str]:
    """By training, whether the CM had stopped improving."""
    lines = []
    for run in found.runs:
        for group, cm in run.rows[run.rows.curve & (run.rows.method == "CM")].groupby("group"):
            before, last = cm.groupby("update")[["ode_error", run.primary]].mean().iloc[-2:].to_numpy()
            error, distance = last / before - 1
            lines.append(
                f"**{run.name}, {group}.** Over the last interval between snapshots the CM's own ODE error changed by "
                f"{error:+.0%}, its distance to the teacher's samples by {distance:+.0%}."
            )
    return lines or ["No training of these runs has a constant learning rate and snapshots."]


def main_verdicts(found: Regimes) -> list[str]:
    """One line a run and claim, at its main setting."""
    claims = {"ode": "C1", "teacher": "C2 (against the teacher's samples)", "data": "C2 (against data)"}
    main = found.claims[found.claims.main]
    rows = ((claim, r) for role, claim in claims.items() for r in main[main.role == role].itertuples())
    together = lambda r: f", over all encoders {r.encoders}" if r.encoders else ""
    return [f"{r.run}, main: {claim} {r.verdict}{together(r)}" for claim, r in rows]


def takeaway(found: Regimes) -> str:
    """When better ODE solutions give worse samples, in the numbers of these runs."""
    c1, teacher, data = (found.claims[found.claims.role == which] for which in ("ode", "teacher", "data"))
    both = _supported_by_all(teacher, c1, data)
    by_study = ", ".join(f"{n} of {family}" for family, n in both.family.value_counts(sort=False).items())
    most = f" ({by_study}), most of all {_said(both.loc[both.value.idxmax()])}" if len(both) else ""
    return (
        f"**Takeaway.** Of {len(teacher)} regimes C1 is supported in {(c1.verdict == 'supported').sum()}, and C2 in "
        f"{(teacher.verdict == 'supported').sum()} by the distance to the teacher's samples; C1, and C2 by both distances, in "
        f"{len(both)}{most}."
    )
