"""Four explanations of C2, and what was measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dcm.analysis import compare
from dcm.analysis.compare import Effect
from dcm.analysis.regime_verdicts import supporting
from dcm.analysis.regimes import REGIME, differences, log_ratios
from dcm.analysis.runs import Run

OUTCOMES = {"supported": "as predicted", "contradicted": "against it", "inconclusive": "undecided"}


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


def mechanisms(run: Run, by_time: pd.DataFrame, starts: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
    """One row a setting with maps: the effect of C2, and what each explanation says it comes from, Direct CM against CM.

    `by_time`, `starts` are rows of :func:`dcm.evaluation.flow_maps.measure_maps`, `claims` of :func:`verdict_table`.

    Columns: ``c2``, ``c2_data`` and ``c1`` (log ratios of the primary metric, of its sibling against data, and of the ODE
    error); ``steep_direct``, ``steep_cm`` (rank correlation of the map's steepness and the error); ``averaging_direct``,
    ``averaging`` (index, and its difference); ``target`` (log gain of the CM's target over the teacher's map);
    ``roughness`` (log gain of the Direct CM's map over the CM's); ``start``, ``own`` (log of how much more the Direct
    CM's error grows from pure noise, and from its own samples noised anew); ``true`` (log ratio of errors to the
    reference solution), ``solver_share`` (log of the solver's error over the CM's), ``holds`` (see
    :func:`supporting`).
    """
    noised = by_time[by_time.t == by_time.t.max()]
    # The ends of trainings; a snapshot's own maps are not measured.
    rows = run.rows[
        (run.rows.sampled == 1) & (run.rows["update"] == run.rows.groupby("base")["update"].transform("max"))
    ]
    late, begin = noised.assign(run=run.name), starts.assign(run=run.name)
    holds = pd.MultiIndex.from_frame(rows[REGIME]).isin(pd.MultiIndex.from_frame(supporting(claims, run)[REGIME]))
    rows = rows.assign(group=rows.base, holds=holds)
    mean_of = lambda table, method, column: table[table.method == method].groupby(REGIME)[column].mean()
    begin = begin.assign(
        start=begin.error_prior / begin.error_noised,
        own=begin.error_own / begin.error_renoised,
        solver_share=np.log(begin.solver_true / begin.error_prior),
    )
    late = late.assign(target=np.log(late.gain_target / late.gain_teacher))
    columns = {
        "c2": log_ratios(rows, run.primary), "c2_data": log_ratios(rows, run.against_data), "c1": log_ratios(rows, "ode_error"),
        "steep_direct": mean_of(late, "Direct CM", "steep_correlation"), "steep_cm": mean_of(late, "CM", "steep_correlation"),
        "averaging_direct": mean_of(begin, "Direct CM", "averaging"), "averaging": differences(begin, "averaging"),
        "target": mean_of(late, "CM", "target"), "roughness": log_ratios(late, "gain_student"),
        "start": log_ratios(begin, "start"), "own": log_ratios(begin, "own"), "true": log_ratios(begin, "error_true"),
        "solver_share": mean_of(begin, "CM", "solver_share"), "holds": rows.groupby(REGIME).holds.all(),
    }  # fmt: skip
    return pd.DataFrame(columns).dropna(subset=["c2", "averaging"]).reset_index().assign(family=run.family)


def predictions(table: pd.DataFrame, resamples: int, confidence: float) -> list[Prediction]:
    """What the four explanations predict, held against :func:`mechanisms` of one family of regimes.

    What C2 comes from must be there where C2 is: means are over the regimes that support it (:func:`supporting`). What drives it must grow
    with it: rank correlations are over all regimes.
    """

    def mean(column: str) -> Effect:
        values = table[column][table.holds.astype(bool)].dropna().to_numpy(float)
        return (
            compare.bootstrap(values, np.mean, resamples, confidence)
            if len(values)
            else Effect(np.nan, np.nan, np.nan, 0)
        )

    drives = lambda column, effect="c2": compare.rank_correlation(
        table[column].to_numpy(), table[effect].to_numpy(), resamples, confidence
    )
    rho, log = "Spearman", "log ratio"

    def both(explanation: str, statement: str, column: str) -> list[Prediction]:
        """C2 grows with `column`, by either distance."""
        return [
            Prediction(explanation, statement, 1, rho, drives(column)),
            Prediction(explanation, f"{statement}, by the distance to data", 1, rho, drives(column, "c2_data")),
        ]

    return [
        Prediction(AVERAGING, "the Direct CM errs more where the ODE map is steeper", 1, rho, mean("steep_direct")),
        Prediction(
            AVERAGING,
            "the Direct CM's error is that of an average: index above 0",
            1,
            "index",
            mean("averaging_direct"),
        ),
        Prediction(AVERAGING, "it averages more than the CM", 1, "index", mean("averaging")),
        *both(AVERAGING, "where it averages more than the CM, C2 is stronger", "averaging"),
        Prediction(SMOOTHING, "the CM's target is smoother than the ODE map", -1, log, mean("target")),
        Prediction(SMOOTHING, "the CM's map is smoother than the Direct CM's", 1, log, mean("roughness")),
        *both(SMOOTHING, "where the CM is smoother by more, C2 is stronger", "roughness"),
        Prediction(WANDERING, "from pure noise the Direct CM's error grows more than the CM's", 1, log, mean("start")),
        Prediction(WANDERING, "from its own samples noised anew it grows more too", 1, log, mean("own")),
        *both(WANDERING, "where it grows more, C2 is stronger", "own"),
        Prediction(DISCRETISING, "the Direct CM is not nearer to the true solution", 1, log, mean("true")),
        *both(DISCRETISING, "where the solver errs more, C2 is stronger", "solver_share"),
    ]


def survival(made: Sequence[Prediction]) -> dict[str, str]:
    """Of every explanation: ``refuted`` by a prediction that fails, ``survives`` if all hold, else ``undecided``."""
    out = {}
    for name in dict.fromkeys(p.explanation for p in made):
        outcomes = [p.outcome for p in made if p.explanation == name]
        out[name] = (
            "refuted" if "against it" in outcomes else "survives" if set(outcomes) == {"as predicted"} else "undecided"
        )
    return out
