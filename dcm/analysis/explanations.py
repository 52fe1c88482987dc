"""Four explanations of C2, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dcm.analysis import compare
from dcm.analysis.compare import Effect
from dcm.analysis.measured import final_one_step
from dcm.analysis.regimes import REGIME, SETTING_OF_RUN, differences, log_ratios, supporting
from dcm.analysis.runs import Run

OUTCOMES = dict(zip(compare.VERDICTS, ("as predicted", "against it", "undecided")))
FATES = ("survives", "undecided", "refuted")  # of an explanation
NOTHING = Effect(np.nan, np.nan, np.nan, 0)


@dataclass(frozen=True)
class Prediction:
    """What an explanation says will be measured, with the sign that it needs.

    Attributes
    ----------
    explanation : number and name. statement : what must hold. sign : of the estimate, if it does. unit : of the estimate.
    estimate : with its interval over regimes.
    """

    explanation: str
    statement: str
    sign: int
    unit: str
    estimate: Effect

    @property
    def outcome(self) -> str:
        """``as predicted``, ``against it`` or ``undecided``: where the whole interval lies."""
        return OUTCOMES[compare.verdict(self.estimate, self.sign)]


AVERAGING, SMOOTHING, WANDERING, DISCRETISING = (
    "1 averaging", "2 bootstrapping as regularisation", "3 off-distribution starts", "4 the teacher's discretisation",
)  # fmt: skip


# (explanation, what must hold where C2 is supported, with this sign, in this unit, of this column of :func:`mechanisms`).
PREDICTIONS = [
    (AVERAGING, "the Direct CM errs more where the ODE map is steeper", 1, "Spearman", "steep_direct"),
    (AVERAGING, "the Direct CM's error is that of an average: index above 0", 1, "index", "averaging_direct"),
    (AVERAGING, "it averages more than the CM", 1, "index", "averaging"),
    (SMOOTHING, "the CM's target is smoother than the ODE map", -1, "log ratio", "target"),
    (SMOOTHING, "the CM's map is smoother than the Direct CM's", 1, "log ratio", "roughness"),
    (WANDERING, "from pure noise the Direct CM's error grows more than the CM's", 1, "log ratio", "start"),
    (WANDERING, "from its own samples noised anew it grows more too", 1, "log ratio", "own"),
    (DISCRETISING, "the Direct CM is not nearer to the true solution", 1, "log ratio", "true"),
]
# (explanation, what C2 must grow with over all regimes, its column).
DRIVES = [
    (AVERAGING, "where it averages more than the CM, C2 is stronger", "averaging"),
    (SMOOTHING, "where the CM is smoother by more, C2 is stronger", "roughness"),
    (WANDERING, "where it grows more, C2 is stronger", "own"),
    (DISCRETISING, "where the solver errs more, C2 is stronger", "solver_share"),
]


def mechanisms(run: Run, by_time: pd.DataFrame, starts: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
    """One row a setting with maps: the effect of C2, and what each explanation says it comes from, Direct CM against CM.

    `by_time`, `starts` are rows of :func:`dcm.evaluation.flow_maps.measure_maps`, with ``run``, and `claims` of
    :meth:`dcm.analysis.runs.Run.claims`.

    Columns: ``c2``, ``c2_data`` and ``c1`` (log ratios of the primary metric, of its sibling against data, and of the ODE
    error); ``steep_direct``, ``steep_cm`` (rank correlation of the map's steepness and the error); ``averaging_direct``,
    ``averaging`` (index, and its difference); ``target`` (log gain of the CM's target over the teacher's map);
    ``roughness`` (log gain of the Direct CM's map over the CM's); ``start``, ``own`` (log of how much more the Direct
    CM's error grows from pure noise, and from its own samples noised anew); ``true`` (log ratio of errors to the
    reference solution), ``solver_share`` (log of the solver's error over the CM's), ``holds`` (see
    :func:`supporting`).
    """
    by = SETTING_OF_RUN
    rows = final_one_step(run.rows)  # a snapshot's own maps are not measured
    held = pd.MultiIndex.from_frame(supporting(claims)[REGIME])
    rows = rows.assign(holds=pd.MultiIndex.from_frame(rows[REGIME]).isin(held))
    late = by_time[by_time.t == by_time.t.max()]
    mean_of = lambda table, method, column: table[table.method == method].groupby(by)[column].mean()
    begin = starts.assign(
        start=starts.error_prior / starts.error_noised,
        own=starts.error_own / starts.error_renoised,
        solver_share=np.log(starts.solver_true / starts.error_prior),
    )
    late = late.assign(target=np.log(late.gain_target / late.gain_teacher))
    columns = {
        "c2": log_ratios(rows, run.primary, by), "c2_data": log_ratios(rows, run.against_data, by),
        "c1": log_ratios(rows, "ode_error", by),
        "steep_direct": mean_of(late, "Direct CM", "steep_correlation"), "steep_cm": mean_of(late, "CM", "steep_correlation"),
        "averaging_direct": mean_of(begin, "Direct CM", "averaging"), "averaging": differences(begin, "averaging", by),
        "target": mean_of(late, "CM", "target"), "roughness": log_ratios(late, "gain_student", by),
        "start": log_ratios(begin, "start", by), "own": log_ratios(begin, "own", by), "true": log_ratios(begin, "error_true", by),
        "solver_share": mean_of(begin, "CM", "solver_share"), "holds": rows.groupby(by).holds.all(),
    }  # fmt: skip
    return pd.DataFrame(columns).dropna(subset=["c2", "averaging"]).reset_index().assign(family=run.family)


def predictions(table: pd.DataFrame, resamples: int, confidence: float) -> list[Prediction]:
    """What the four explanations predict, held against :func:`mechanisms` of one family of regimes.

    What C2 comes from must be there where C2 is: means are over the regimes that support it (:func:`supporting`). What drives it must grow
    with it: rank correlations are over all regimes.
    """
    holds = table.holds.astype(bool)
    made = []
    for explanation, statement, sign, unit, column in PREDICTIONS:
        values = table[column][holds].dropna().to_numpy(float)
        mean = compare.bootstrap(values, np.mean, resamples, confidence) if len(values) else NOTHING
        made.append(Prediction(explanation, statement, sign, unit, mean))
    for explanation, statement, column in DRIVES:
        for effect, more in (("c2", ""), ("c2_data", ", by the distance to data")):
            rho = compare.rank_correlation(table[column].to_numpy(), table[effect].to_numpy(), resamples, confidence)
            made.append(Prediction(explanation, statement + more, 1, "Spearman", rho))
    return sorted(made, key=lambda p: p.explanation)  # a stable order: first what must be there, then what drives


def survival(made: Sequence[Prediction]) -> dict[str, str]:
    """Of every explanation: ``refuted`` by a prediction that fails, ``survives`` if all hold, else ``undecided``."""
    out = {}
    for name in dict.fromkeys(p.explanation for p in made):
        outcomes = {p.outcome for p in made if p.explanation == name}
        refuted, survives = OUTCOMES["contradicted"] in outcomes, outcomes == {OUTCOMES["supported"]}
        out[name] = FATES[2] if refuted else FATES[0] if survives else FATES[1]
    return out
