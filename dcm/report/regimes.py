"""What notebook 6 reports: the runs that it compares, joined and judged by regime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from dcm.analysis import explanations, runs, slopes
from dcm.analysis.compare import Effect, interval
from dcm.analysis.explanations import Prediction
from dcm.analysis.regimes import REGIME
from dcm.analysis.runs import Run
from dcm.analysis.slopes import Slopes
from dcm.evaluation import flow_maps
from dcm.evaluation.samples import EvaluationSet
from dcm.report.page import Page
from dcm.report.sentences import span
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_json
from dcm.training.saved import load_group

EXACT_POINTS = 16  # how many times as many points the exact teacher takes


@dataclass
class Regimes:
    """Runs whose regimes are compared.

    Attributes
    ----------
    rows : every student of every regime. claims : :meth:`dcm.analysis.runs.Run.claims` of all runs.
    resamples, confidence : of every interval.
    """

    runs: list[Run]
    rows: pd.DataFrame
    claims: pd.DataFrame
    resamples: int
    confidence: float

    @classmethod
    def load(cls, folders: Sequence[str], device, resamples: int, confidence: float) -> Regimes:
        """Those of all `folders`; raises :class:`InputError` where two have one name or there is nothing to compare."""
        found = [run for folder in folders for run in runs.load_runs(folder, device)]
        if len({r.name for r in found}) < len(found):
            raise InputError("two of the runs have folders of one name; give each its own.")
        claims = pd.concat([r.claims(resamples, confidence) for r in found], ignore_index=True)
        if not len(claims):
            raise InputError("no group of the runs has both a CM and a Direct CM; there is nothing to compare.")
        rows = pd.concat([r.rows.assign(family=r.family) for r in found], ignore_index=True)
        return cls(found, rows, claims, resamples, confidence)

    @property
    def families(self) -> list[str]:
        """The studies' names."""
        return list(dict.fromkeys(r.family for r in self.runs))

    def of(self, family: str) -> list[Run]:
        """The runs of a study."""
        return [r for r in self.runs if r.family == family]

    @property
    def behind(self) -> str:
        """Seeds and updates, for captions."""
        updates = [g.updates for r in self.runs for g in r.groups.values()]
        return f"{span(self.claims.seeds)} seeds, {span(updates)} updates; intervals of {self.confidence:.0%}."

    def primary(self, which: str, family: str | None = None) -> pd.DataFrame:
        """Claims by the primary metric (``teacher``), its sibling (``data``), or the ODE error (``ode``)."""
        return self.claims[(self.claims.role == which) & (self.claims.family == (family or self.claims.family))]

    def page(self, folder: str, own: dict) -> Page:
        """A page in `folder` with the rows and the verdicts, which figures are drawn from; `own` is this notebook's record."""
        records = {f"{run.name}/{name}": record for run in self.runs for name, record in run.records.items()}
        page = Page(project_path(folder), "regimes", records | {own["notebook"]: own})
        page.csv("metrics", self.rows)
        page.csv("verdicts", self.claims)
        write_json(page.folder / "studies.json", {run.name: asdict(run.facts) for run in self.runs})
        return page

    @cached_property
    def slopes(self) -> dict[str, tuple[pd.DataFrame, str, Slopes]]:
        """By study: its students (x, y: logarithms of ODE error and primary metric), that metric's label, and slopes."""
        out = {}
        for family in self.families:
            facts = self.of(family)[0].facts
            rows = self.rows[(self.rows.family == family) & (self.rows.steps == 1)]
            rows = rows.assign(x=np.log(rows.ode_error), y=np.log(rows[facts.primary]))
            rows = rows[np.isfinite(rows.x) & np.isfinite(rows.y)]
            found = slopes.slopes(rows, "x", "y", REGIME, self.resamples, self.confidence)
            out[family] = (rows, facts.metrics[facts.primary].label, found)
        return out

    @cached_property
    def at_equal_error(self) -> dict[str, Effect]:
        """By study, how many times the CM's the Direct CM's primary metric is at equal ODE error."""
        rows = {family: rows for family, (rows, _, _) in self.slopes.items()}
        gaps = {f: slopes.at_equal_error(r, REGIME, self.resamples, self.confidence) for f, r in rows.items()}
        return {f: Effect(np.exp(gap.value), np.exp(gap.low), np.exp(gap.high), gap.n) for f, gap in gaps.items()}

    def measure_maps(self, store: Path, map_samples: int, probes: int, device) -> list[pd.DataFrame]:
        """Maps of every student of every run: the two tables of :func:`dcm.evaluation.flow_maps.measure_maps`, with ``run``.

        `map_samples`, `probes` : points and directions; the exact teacher is cheap, so it takes more points, and all
        directions. `store` : a folder that keeps what was measured.
        """
        found = {r.name: r.maps or _measured(r, store / r.name, map_samples, probes, device) for r in self.runs}
        return [pd.concat([t.assign(run=run) for run, t in zip(found, each)]) for each in zip(*found.values())]

    def mechanisms(self, by_time: pd.DataFrame, starts: pd.DataFrame) -> pd.DataFrame:
        """:func:`dcm.analysis.explanations.mechanisms` of all runs."""
        of = lambda table, run: table[table.run == run.name]
        tables = [explanations.mechanisms(r, *(of(t, r) for t in (by_time, starts, self.claims))) for r in self.runs]
        return pd.concat(tables, ignore_index=True)

    def predictions(self, mechanisms: pd.DataFrame) -> dict[str, list[Prediction]]:
        """By study, what the explanations predict against what was measured."""
        parts = mechanisms.groupby("family", sort=False)
        return {family: explanations.predictions(t, self.resamples, self.confidence) for family, t in parts}

    def shown(self, by_time: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Rows by time of main groups: of each study the first run's, and that with the strongest effect of C2."""
        out = {}
        for family in self.families:
            claims = self.primary("teacher", family)
            strongest = claims[claims.main].sort_values("value").run[-1:]
            for run in self.of(family):
                if run.name in {self.of(family)[0].name, *strongest}:
                    at = {"run": run.name, "group": run.main, "guidance": run.groups[run.main].guidance[0]}
                    out[run.name] = by_time[(by_time[list(at)] == pd.Series(at)).all(axis=1)]
        return out

    def by_steps(self) -> pd.DataFrame:
        """The effect of C2 by sampling steps, of groups that were sampled in several."""
        claims = self.primary("teacher")
        ends = claims[claims["update"] == claims.groupby(["run", "group"])["update"].transform("max")]
        several = ends[ends.steps > 1][["run", "group"]].drop_duplicates()
        columns = ["family", "run", "steps", "value", "low", "high", "verdict"]
        return ends.merge(several)[columns].sort_values(["run", "steps"])


def _measured(run: Run, store: Path, map_samples: int, probes: int, device) -> tuple[pd.DataFrame, pd.DataFrame]:
    study, settings = run.study, run.records["3_ode_error"]["parameters"]
    assert study is not None  # else there are maps
    evaluation = EvaluationSet(study, run.folder, settings["samples"], settings["seed"], device)
    points = min(map_samples * (EXACT_POINTS if study.exact else 1), settings["samples"])
    probes = int(np.prod(run.facts.shape)) if study.exact else probes
    groups = [load_group(run.folder, name) for name in run.groups]
    by_time, starts = flow_maps.measure_maps(study, evaluation, groups, points, probes, store)
    return pd.DataFrame(by_time), pd.DataFrame(starts)


def prediction_table(predictions: dict[str, list[Prediction]]) -> pd.DataFrame:
    """One line a prediction, estimates and outcomes by study."""
    out = []
    for made in zip(*predictions.values()):
        line = {"explanation": made[0].explanation, "prediction": made[0].statement, "estimate": made[0].unit}
        for family, p in zip(predictions, made):
            found = f"{p.outcome}: {interval(p.estimate)}, {p.estimate.n} regimes"
            line[family] = found if p.estimate.n else "no regime supports C2"
        out.append(line)
    return pd.DataFrame(out)
