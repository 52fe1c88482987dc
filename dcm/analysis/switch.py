"""The switch: students that go on from the same weights, and differ in the objective of their second half alone.

Two objectives in two halves are a 2 x 2 table. Read along a row of it, from equal weights, a ratio is the objective's own
doing; docs/preregistration.md has the rules.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from dcm.analysis.compare import STABLE, where_stable, with_stability
from dcm.analysis.measured import final_one_step
from dcm.analysis.runs import REGIME, SETTING_OF_RUN, Results, judged, measures
from dcm.horizon import Horizon, method_name, resolve_horizon
from dcm.metrics.metric import ENCODERS
from dcm.solvers import SOLVERS

SWITCH = {"D>D / D>CM": ("Direct CM", "direct>cm"), "CM>D / CM>CM": ("cm>direct", "CM")}
PLAIN = {"Direct CM / CM": ("Direct CM", "CM")}
GAINS = {f"{a} / {b}": (a, b) for a in ("direct>cm", "anneal") for b in ("CM", "Direct CM")}
EQUAL = {f"{a} / Direct CM at equal evaluations": (a, f"Direct CM as dear as {a}") for a in ("direct>cm", "anneal")}
BETWEEN = {"anneal / direct>cm": ("anneal", "direct>cm")}
# Of samples that workflow/gains.py filtered: both to the teacher's power spectrum, and the CM's to the Direct one's.
UNBLURRED = {f"{pair}, teacher's spectrum": (f"{a} as teacher", f"{b} as teacher") for pair, (a, b) in SWITCH.items()}
BLURRED = {f"{pair}, CM blurred": (a, f"{b} as {a}") for pair, (a, b) in SWITCH.items()}

# Of samples in several steps, with fresh noise between them.
FEW_STEPS = {f"{pair}, {k} steps": (k, methods) for k in (2, 4) for pair, methods in SWITCH.items()}


def at(rows: pd.DataFrame, setting: Sequence) -> pd.DataFrame:
    """Those of one of the :func:`settings`."""
    return rows[(rows[SETTING_OF_RUN] == list(setting)).all(axis=1)]


def settings(results: Results) -> pd.DataFrame:
    """The settings (:data:`SETTING_OF_RUN`) with a pair of the switch, the main group's first."""
    last = final_one_step(results.rows)
    have = last.groupby(SETTING_OF_RUN).method.agg(lambda m: any(set(pair) <= set(m) for pair in SWITCH.values()))
    found = have[have].index.to_frame(index=False)
    return found.sort_values("group", key=lambda g: g != results.main, kind="stable", ignore_index=True)


def filtered(results: Results) -> pd.DataFrame:
    """Rows of samples that were filtered to a power spectrum, each a method of its own: ``CM as teacher``, say."""
    if results.gains is None:
        return results.rows[:0]
    return results.gains.assign(run=results.name, method=results.gains.method + " as " + results.gains.spectrum)


def effects(results: Results) -> pd.DataFrame:
    """Every pair of methods in every setting: :func:`dcm.analysis.runs.judged`.

    With the column ``cm`` (:func:`dcm.analysis.compare.stability`). Where the CM is not stable the verdict is that it is not.
    In several steps there is no ODE error: fresh noise leads them off the solution that they would be compared with.
    """
    last = final_one_step(results.rows)
    columns = [c for c in measures(results.study) if c in last]
    every = pd.concat([last.merge(settings(results)), at_equal_evaluations(results, columns), filtered(results)])
    each = [
        judged(results.study, rows, SETTING_OF_RUN, pair, methods)
        for rows, pairs in ((every, SWITCH | GAINS | EQUAL | BETWEEN | UNBLURRED | BLURRED), (last, PLAIN))
        for pair, methods in pairs.items()
    ]  # fmt: skip
    ends = results.rows[results.rows.final].merge(settings(results)).assign(ode_error=np.nan)
    each += [judged(results.study, ends[ends.steps == k], SETTING_OF_RUN, pair, methods) for pair, (k, methods) in FEW_STEPS.items()]
    table = pd.concat(each, ignore_index=True)
    return where_stable(table, results.rows, SETTING_OF_RUN) if len(table) else table


def plane(table: pd.DataFrame) -> pd.DataFrame:
    """A point a setting, pair and distance to the teacher's samples: ratios ``c1`` of the ODE error, ``c2`` of the distance.

    `table` has :func:`effects`, or :func:`dcm.analysis.runs.regimes`.
    """
    key = [name for name in (*REGIME, "pair") if name in table]
    out = table[table.role.isin(["teacher", "further"])].rename(columns={"value": "c2"}).join(_errors(table, key), on=key)
    return out[(out.c1 > 0) & (out.c2 > 0)].reset_index(drop=True)


def from_equal_weights(table: pd.DataFrame) -> pd.DataFrame:
    """Those :func:`effects` of the pairs of the switch that have a stable CM."""
    return table[table.pair.isin(SWITCH) & (table.cm == STABLE)]


def beside_errors(table: pd.DataFrame, role: str = "teacher") -> pd.DataFrame:
    """Effects on the distances of a `role`, beside those on the error after the same encoder (columns that end in ``_there``).

    And the ratio of the ODE error itself (``c1``). `table` has :func:`effects`.
    """
    errors = {(study, d): error for study, of in ENCODERS.items() for *distances, error in of.values() for d in distances}
    own = table[table.role == role]
    distances = own.assign(metric_there=pd.Series([errors.get(of) for of in zip(own.study, own.metric)], own.index, own.metric.dtype))
    key = [*SETTING_OF_RUN, "pair"]
    there = table[table.role == "features"].rename(columns={c: f"{c}_there" for c in table if c not in key})
    return distances.merge(there, on=[*key, "metric_there"]).join(_errors(table, key), on=key)


def same_side(points: pd.DataFrame, error: str) -> pd.Series:
    """At which points of :func:`beside_errors` an `error` (``c1`` or ``value_there``) ranks the two as their samples do."""
    return (points[error] > 1) == (points.value > 1)


def _errors(table: pd.DataFrame, key: list[str]) -> pd.Series:
    """Ratios of the ODE error by setting and pair."""
    return table[table.metric == "ode_error"].set_index(key).value.rename("c1")


def log_ratios(rows: pd.DataFrame, pair: tuple[str, str], column: str) -> pd.Series:
    """log(first / second) of the `pair` by seed, of one setting's final `rows`."""
    values = rows.pivot(index="seed", columns="method", values=column).reindex(columns=list(pair)).dropna()
    return np.log(values[pair[0]] / values[pair[1]])


TERMS = {
    "solving": "better solving: C1", "space": "change of space: C1 in features against C1",
    "share": "share of the error that shows in the distribution",
}  # fmt: skip


def accounting(results: Results) -> pd.DataFrame:
    """The three terms of log C2 by setting, pair and encoder, means over seeds.

    Exact, since a Frechet distance is a share of the paired error in the same features: ``solving`` = log C1; ``space`` =
    log C1(phi) - log C1; ``share`` = log(share Direct / share CM); ``log_c2`` their sum.
    """
    last, out = final_one_step(results.rows), []
    for setting in settings(results).itertuples(index=False):
        rows = at(last, setting)
        measured = {name: (p, d) for name, (d, _, p) in ENCODERS[results.study].items() if {d, p} <= set(rows)}
        for (pair, methods), (encoder, columns) in product(SWITCH.items(), measured.items()):
            each = [log_ratios(rows, methods, column) for column in ("ode_error", *columns)]
            error, features, distance = pd.concat(each, axis=1, join="inner").to_numpy().T
            if len(error):
                terms = dict(solving=error, space=features - error, share=distance - features, log_c2=distance)
                line = setting._asdict() | dict(pair=pair, encoder=encoder, seeds=len(error))
                out.append(line | {name: values.mean() for name, values in terms.items()})
    table = pd.DataFrame(out, columns=[*SETTING_OF_RUN, "pair", "encoder", "seeds", *TERMS, "log_c2"])
    return with_stability(table, results.rows, SETTING_OF_RUN).assign(study=results.study)


def teacher_evaluations(horizon: Horizon, solver: str, intervals: int, guidance: float) -> float:
    """Of the teacher, for each sample of an update of a student that trains alone, in expectation.

    The mean of min(h, n) over n and the parts of training, times the solver's own, twice with guidance.
    """
    parts = ((1.0, horizon),) if isinstance(horizon, int) else horizon
    steps = sum(share * min(h, n) for share, h in parts for n in range(1, intervals + 1)) / intervals
    return steps * SOLVERS[solver].evaluations * (1 if guidance == 1 else 2)


def costs(results: Results) -> pd.DataFrame:
    """:func:`teacher_evaluations` of every method by setting of the switch, and relative to the Direct CM's."""
    out = []
    for s in settings(results).itertuples(index=False):
        for h in (resolve_horizon(h, s.intervals) for h in results.groups[s.group].horizons):
            line = s._asdict() | {"method": method_name(h, s.intervals)}
            out.append(line | {"evaluations": teacher_evaluations(h, s.solver, s.intervals, s.guidance)})
    table = pd.DataFrame(out, columns=[*SETTING_OF_RUN, "method", "evaluations"])
    direct = table[table.method == "Direct CM"].set_index(SETTING_OF_RUN).evaluations.rename("direct")
    return table.join(direct, on=SETTING_OF_RUN).assign(relative=lambda t: t.evaluations / t.direct).drop(columns="direct")


def at_equal_evaluations(results: Results, columns: Sequence[str]) -> pd.DataFrame:
    """The Direct CM where it has spent as many teacher evaluations as the others of :data:`EQUAL` have at their ends.

    Between snapshots `columns` are interpolated, logarithms over logarithms. As a method ``Direct CM as dear as ..``.
    """
    out, direct = [], results.rows[(results.rows.steps == 1) & (results.rows.method == "Direct CM")]
    for cost in costs(results).itertuples(index=False):
        if (name := f"Direct CM as dear as {cost.method}") not in (second for _, second in EQUAL.values()):
            continue
        for _, seed in at(direct, cost[: len(SETTING_OF_RUN)]).sort_values("update").groupby("seed"):
            end, log = seed.iloc[-1].to_dict(), np.log(seed["update"])
            there = np.log(end["update"] * cost.relative)
            out.append(end | {"method": name} | {c: np.exp(np.interp(there, log, np.log(seed[c]))) for c in columns})
    return pd.DataFrame(out, columns=results.rows.columns)


def course(results: Results, setting: pd.Series) -> dict[str, pd.DataFrame]:
    """Of one setting's students in one step: rows ``before`` (at the update of the switch) and ``after`` (the end)."""
    rows = at(results.rows[results.rows.steps == 1], setting)
    half = round(results.groups[setting.group].updates / 2)
    return {"before": rows[rows["update"] == half], "after": rows[rows.final]}
