"""From the tables of all regimes to sentences."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from dcm.analysis import explanations, regime_verdicts, slopes
from dcm.analysis.compare import interval
from dcm.analysis.explanations import FATES, OUTCOMES, Prediction
from dcm.analysis.measured import METHODS
from dcm.analysis.regimes import FURTHER, REGIME
from dcm.analysis.slopes import Slopes
from dcm.report.page import markdown
from dcm.report.regimes import Regimes, prediction_table
from dcm.report.sentences import bullets, counted, listed
from dcm.support.errors import InputError

Made = dict[str, list[Prediction]]  # by study


def _names(regimes: pd.DataFrame) -> list[str]:
    return list(regimes.run + ", " + regimes.regime)


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
        students = r.rows.drop_duplicates(["group", "guidance", "horizon", "seed"])
        regimes = found.claims[found.claims.run == r.name][REGIME].drop_duplicates()
        shape = " x ".join(map(str, r.facts.shape)) + (f", {r.facts.modes} modes a class" if r.facts.modes else "")
        about = f"**{r.name}** ({r.family}, samples of shape {shape})"
        parts.append(f"{about}: {len(students)} students, {len(regimes)} regimes")
    return f"Compared: {'; '.join(parts)}."


def where_c2_holds(found: Regimes) -> list[str]:
    """Counts by study, the regimes that support C2 against teacher and data, and the extremes."""
    lines = []
    for family in found.families:
        c1, teacher, data = (found.primary(which, family) for which in ("ode", "teacher", "data"))
        holding = pd.concat([regime_verdicts.supporting(found.claims, r) for r in found.of(family)])
        best = regime_verdicts.strongest(teacher)
        lines += [
            f"**{family}.** Verdicts over its {len(teacher)} regimes: C1 (where it is defined) {counted(c1)}; C2 by the "
            f"distance to the teacher's samples {counted(teacher)}, and by the distance to data {counted(data)}.",
            f"Regimes of {family} that support C2 by at least one of the two distances and are contradicted by neither: "
            f"{listed(_names(holding))}.",
            *(
                f"The strongest regime of {family} {side} C2, by the distance to the teacher's samples: {_said(best[side])}."
                for side in ("for", "against")
            ),
        ]
    return lines


def do_measures_agree(found: Regimes) -> list[str]:
    """Of the regimes that support C2 by the primary metric, what the other measures say; then the further encoders."""
    lines = []
    for family in found.families:
        first = found.of(family)[0]
        others = {name: m for name, m in first.metrics.items() if m.judged and name != first.primary}
        held = _supported_by_all(found.primary("teacher", family))[REGIME]
        if not len(held):
            lines.append(f"No regime of {family} supports C2 by the distance to the teacher's samples.")
            continue
        claims = found.claims[found.claims.metric.isin(others)].merge(held, on=REGIME)
        each = [f"{others[str(k)].label}: {counted(t)}" for k, t in claims.groupby("metric", sort=False)]
        clash = claims[claims.verdict == "contradicted"].groupby(REGIME).ngroups
        lines.append(
            f"Of the {len(held)} regimes of {family} that support C2 by the distance to the teacher's samples, "
            f"{clash} are contradicted by at least one other measure ({'; '.join(each)})."
        )
    return [*lines, *further_encoders(found)]


def further_encoders(found: Regimes) -> list[str]:
    """What the Frechet distances on further encoders say, of studies that have them."""
    lines = []
    for family in found.families:
        own, metrics = found.claims[found.claims.family == family], found.of(family)[0].metrics
        for names in FURTHER.items():
            c1, teacher, data = (own[own.metric == name] for name in ("ode_error", *names))
            if len(teacher):
                best = regime_verdicts.strongest(teacher)
                lines.append(
                    f"**{family}, by a further encoder** ({metrics[names[0]].label}). C2 by the distance to the teacher's samples: "
                    f"{counted(teacher)}; by the distance to data: {counted(data)}. Regimes that support C1, and C2 by both "
                    f"distances: {listed(_names(_supported_by_all(c1, teacher, data)))}. Strongest for C2: "
                    f"{_said(best['for'])}; against it: {_said(best['against'])}."
                )
    return lines


def while_training(found: Regimes) -> list[str]:
    """The effect of C2 along each training, and whether the CM had stopped improving."""
    lines = []
    for run in found.runs:
        for group, part in regime_verdicts.curves(run, found.primary("teacher")).groupby("group"):
            each = "; ".join(f"{u}: {v:.3g} ({said})" for u, v, said in part[["update", "value", "verdict"]].values)
            cm = run.rows[run.rows.curve & (run.rows.group == group) & (run.rows.method == "CM")]
            before, last = cm.groupby("update")[run.primary].mean().iloc[-2:]
            lines.append(
                f"**{run.name}, {group}.** Ratio Direct CM / CM of the distance to the teacher's samples by updates: {each}. "
                f"Over the last interval between snapshots the CM's own distance changed by {last / before - 1:+.0%}."
            )
    none = "No training of these runs has a constant learning rate and snapshots, so there is no curve to show."
    return lines or [none]


def paradox(found: Slopes) -> str:
    """Whether the slope over all points and that within groups have opposite signs."""
    if found.pooled.low > 0 and found.within.high < 0:
        return "The sign turns around: Simpson's paradox."
    if found.pooled.low > 0 and found.within.low > 0:
        return "The sign is the same within settings as over all."
    return "The intervals do not settle whether the sign turns around."


def pooled_and_within(found: Regimes) -> list[str]:
    """Pooled and within-setting slopes and correlations, within one method too, and whether they turn around."""
    lines = []
    for family, (rows, _, s) in found.slopes.items():
        lines += [
            f"**{family}.** Over all {len(rows)} students the slope is {interval(s.pooled)} and Spearman's correlation "
            f"{interval(s.rank_pooled)}; within settings the common slope is {interval(s.within)} and the mean correlation "
            f"{interval(s.rank_within)}. In {int((s.by_group.slope < 0).sum())} of {len(s.by_group)} settings a lower ODE error "
            f"goes with worse samples. {paradox(s)}",
            at_equal_error(found, family),
        ]
        try:
            alone = slopes.slopes(rows, "x", "y", [*REGIME, "method"], found.resamples, found.confidence)
        except InputError:
            continue  # fewer than three seeds
        lines.append(
            f"Among students of {family} that differ in their seed alone (one setting and one method) the slope is "
            f"{interval(alone.within)}, the mean correlation {interval(alone.rank_within)}."
        )
    return lines


def at_equal_error(found: Regimes, family: str) -> str:
    """How much worse the Direct CM's samples are at equal ODE error."""
    return (
        f"At equal ODE error, by a fit over all settings of {family}, the Direct CM's distance to the teacher's "
        f"samples is {interval(found.at_equal_error[family])} times the CM's."
    )


def outcome(predictions: Made, explanation: str) -> list[str]:
    """What an explanation predicted and what was found, by study."""
    lines = []
    for family, made in predictions.items():
        own = [p for p in made if p.explanation == explanation]
        each = "; ".join(
            f"{p.statement}: {p.outcome} ({p.unit} {interval(p.estimate)}, {p.estimate.n} regimes)"
            if p.estimate.n else f"{p.statement}: no regime to test it on"
            for p in own
        )  # fmt: skip
        lines.append(f"**{family}: {explanations.survival(made)[explanation]}.** {each[0].upper()}{each[1:]}.")
    return lines


def accumulation(found: Regimes, starts: pd.DataFrame) -> list[str]:
    """Whether a student's steps along the teacher's trajectory add up or cancel; `starts` are rows from noise of all runs."""
    rows = starts.merge(found.rows[["run", "family"]].drop_duplicates(), on="run")
    medians = rows.groupby(["family", "method"]).accumulation.median()
    return [
        "A student's error is the sum of its steps along the teacher's trajectory; its square over the sum of their squares "
        f"(1: unrelated, N: all agree) has in {family} the median "
        + ", ".join(f"{medians[family, m]:.2f} for the {m}" for m in METHODS) + "."
        for family in found.families
    ]  # fmt: skip


def fates(predictions: Made) -> list[str]:
    """One line an explanation and study."""
    return [
        f"explanation {name}: {fate} ({family})"
        for family, made in predictions.items() for name, fate in explanations.survival(made).items()
    ]  # fmt: skip


def main_verdicts(found: Regimes) -> list[str]:
    """One line a run and claim, at its main setting."""
    claims = {"ode": "C1", "teacher": "C2 (against the teacher's samples)", "data": "C2 (against data)"}
    tables = {claim: found.primary(which) for which, claim in claims.items()}
    return [f"{r.run}, main: {claim} {r.verdict}" for claim, t in tables.items() for r in t[t.main].itertuples()]


def _surviving(predictions: Made) -> Iterable[str]:
    """Explanations that survive in every study."""
    each = [{n for n, f in explanations.survival(made).items() if f == FATES[0]} for made in predictions.values()]
    return sorted(set.intersection(*each))


def conclusion(predictions: Made) -> list[str]:
    """Which explanations survive where."""
    lines = []
    for family, made in predictions.items():
        of = explanations.survival(made)
        each = "; ".join(f"{fate}: {', '.join(n for n, f in of.items() if f == fate) or 'none'}" for fate in FATES)
        tally = "; ".join(
            f"{n}: {', '.join(f'{sum(p.explanation == n and p.outcome == o for p in made)} {o}' for o in OUTCOMES.values())}"
            for n in of
        )
        held = f"over the {made[0].estimate.n} settings that support C2"
        lines.append(f"**{family}**, {held}. {each[0].upper()}{each[1:]}. Of its predictions: {tally}.")
    return [*lines, f"Explanations that survive in every study here: {listed(list(_surviving(predictions)))}."]


def limits(found: Regimes) -> str:
    """What the design cannot say."""
    sizes = ", ".join(f"{name}: {n}" for name, n in found.claims.groupby("run", sort=False).seeds.max().items())
    return (
        f"**Limits.** Seeds a regime: {sizes}; intervals of so few are optimistic, and regimes of one run share teacher and "
        "evaluation noise, so they are no independent sample of all regimes. Teacher and students start from the same "
        "noise, so a small ODE error alone keeps the distance to the teacher's samples small: that distance leans towards "
        "the Direct CM, the distance to data does not. Which regimes "
        "count as supporting C2 for the explanations (by either distance, contradicted by neither) was settled after the "
        "first verdicts on digits had been seen. A study's verdict rests on its first encoder, chosen before; further encoders "
        "stand beside it. A "
        "correlation over regimes does not show a cause: what an explanation names may go with what causes it. Teachers "
        f"here are of the studies {', '.join(found.families)}; nothing above was measured on SDXL."
    )


def takeaway(found: Regimes, predictions: Made) -> str:
    """When better ODE solutions give worse samples, in the numbers of these runs."""
    c1, teacher, data = (found.primary(which) for which in ("ode", "teacher", "data"))
    both = _supported_by_all(c1, teacher, data)
    by_study = ", ".join(f"{n} of {family}" for family, n in both.family.value_counts(sort=False).items())
    strongest = f"; most of all in {_said(both.loc[both.value.idxmax()])}" if len(both) else ""
    return (
        f"**Takeaway.** Of {len(teacher)} regimes, C1 is supported in {int((c1.verdict == 'supported').sum())} and C2 in "
        f"{int((teacher.verdict == 'supported').sum())} by the distance to the teacher's samples; C1 and C2 by both distances "
        f"in {len(both)}{f' ({by_study})' if by_study else ''}{strongest}. Of the four explanations, in every study "
        f"here there survive: {listed(list(_surviving(predictions)))}."
    )


def summary(found: Regimes, predictions: Made, minutes: float) -> str:
    """What the documentation quotes: the counts, the extremes, the fates, and the table of predictions."""
    equal = [at_equal_error(found, family) for family in found.families]
    spent = f"Wall time of all notebooks behind it, one after the other: {minutes:.0f} minutes."
    lines = [*where_c2_holds(found), *further_encoders(found), *equal, *conclusion(predictions), spent]
    counts = regime_verdicts.counts(found.claims, found.runs)
    return "\n\n".join([bullets(lines), markdown(counts), markdown(prediction_table(predictions))]) + "\n"
