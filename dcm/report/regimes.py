"""What notebook 6 reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dcm.analysis import explanations, regime_verdicts, regimes, runs, slopes
from dcm.analysis.compare import Effect
from dcm.analysis.explanations import Prediction
from dcm.analysis.regime_verdicts import VERDICTS
from dcm.analysis.regimes import REGIME
from dcm.analysis.runs import Run
from dcm.analysis.slopes import Slopes
from dcm.evaluation import flow_maps
from dcm.evaluation.samples import EvaluationSet
from dcm.figures import samples as sample_figures
from dcm.figures.style import METHODS
from dcm.notebook import Session
from dcm.report import page, provenance
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, project_path, write_csv, write_json, write_tensors, write_text
from dcm.training.saved import load_group

EXACT_POINTS = 16  # how many times as many points the exact teacher takes
Maps = dict[str, tuple[pd.DataFrame, pd.DataFrame]]  # by run: rows by time, and rows from noise


def interval(e: Effect | pd.Series) -> str:
    """An effect as ``value [low, high]``, or that it or its interval is not defined."""
    if not np.isfinite(e.value):
        return "not defined"
    return f"{e.value:.3g} [{e.low:.3g}, {e.high:.3g}]" if np.isfinite(e.low) else f"{e.value:.3g} (no interval)"


def listed(names: Sequence[str]) -> str:
    """Names in one line, or that there are none."""
    return "; ".join(names) if len(names) else "none"


class RegimesReport:
    """Collects what notebook 6 computes, draws and says, and writes it into the results folder.

    Attributes
    ----------
    runs : the studies compared. claims : verdicts by regime and measure. said : sentences, in the notebook's order.
    """

    def __init__(self, session: Session):
        p = session.p
        self.session, self.folder = session, project_path(p.results_dir)
        self.runs = [run for folder in p.runs for run in runs.load_runs(folder, session.device)]
        if len({r.name for r in self.runs}) < len(self.runs):
            raise InputError("two of the runs have folders of one name; give each its own.")
        self.claims = pd.concat(
            [regime_verdicts.verdict_table(r, p.bootstrap, p.confidence) for r in self.runs], ignore_index=True
        )
        if not len(self.claims):
            raise InputError("no group of the runs has both a CM and a Direct CM; there is nothing to compare.")
        self.rows = pd.concat([r.rows.assign(family=r.family) for r in self.runs], ignore_index=True)
        self.tables: list[str] = []
        self._write_table("metrics", self.rows)
        self._write_table("verdicts", self.claims)
        self.said: list[str] = []
        self.at_equal_error: dict[str, str] = {}
        self.items: list[tuple[str, str, str]] = []

    # What stands behind it

    @cached_property
    def records(self) -> dict[str, dict]:
        """What the notebooks behind these results noted of themselves, this one included."""
        out = {f"{run.name}/{name}": record for run in self.runs for name, record in run.records.items()}
        return out | {self.session.notebook: self.session.provenance.record}

    @property
    def behind(self) -> str:
        """Seeds and updates, for captions."""
        seeds = self.claims.seeds
        updates = [g.updates[-1] for r in self.runs for g in r.groups.values()]
        span = lambda v: f"{min(v)}" if min(v) == max(v) else f"{min(v)} to {max(v)}"
        return f"{span(seeds)} seeds, {span(updates)} updates; intervals of {self.session.p.confidence:.0%}."

    def of(self, family: str) -> list[Run]:
        """The runs of a study."""
        return [r for r in self.runs if r.family == family]

    @property
    def families(self) -> list[str]:
        """The studies' names."""
        return list(dict.fromkeys(r.family for r in self.runs))

    @property
    def primary_labels(self) -> dict[str, str]:
        """Labels of the primary metric, by study."""
        return {f: self.of(f)[0].metrics[self.of(f)[0].primary].label for f in self.families}

    def say(self, *sentences: str) -> None:
        """Show sentences as paragraphs and keep them for the results' page."""
        from IPython.display import Markdown, display

        for text in sentences:
            self.said.append(text)
            display(Markdown(text))

    def add(self, name: str, figure: Figure, caption: str, drawn_from: Sequence[Path] = ()) -> None:
        """Save a figure as png and pdf and keep its caption; it is drawn from the tables written so far, or from files."""
        files = drawn_from or [self.folder / f"{name}.csv" for name in self.tables]
        parameters = {notebook: record["parameters"] for notebook, record in self.records.items()}
        record = {
            "study": "regimes", "figure": name, "caption": caption, "commit": self.session.provenance.record["commit"],
            "parameters": provenance.of_parameters(parameters, self.folder / "provenance.json", self.folder),
            "drawn_from": [provenance.of_file(path, self.folder) for path in files],
        }  # fmt: skip
        page.save(figure, self.folder, record)
        self.items.append((name, caption, f"![{name}]({name}.png)"))

    def add_samples(self, run: Run) -> None:
        """Show a run's samples, and keep them, so that they can be shown again without its students."""
        path = self.folder / runs.samples_file(run.name)
        write_tensors(path, run.shown)
        group = run.groups[run.main]
        caption = (
            f"Samples of {run.name} from the same noise: teacher, and seed {group.group.seeds[0]} of CM and Direct CM after "
            f"{group.updates[-1]} updates, w = {group.group.guidance[0]:g}."
        )
        figure = sample_figures.image_rows(run.shown, runs.SHOWN)
        self.add(f"samples_{run.name}", figure, caption, [path])

    def _write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table that the figures after it are drawn from."""
        write_csv(self.folder / f"{name}.csv", table)
        self.tables = [*(t for t in self.tables if t != name), name]

    # Where C2 holds

    def what_was_run(self) -> str:
        """What is compared, counted."""
        parts = []
        for r in self.runs:
            ends = r.rows[r.rows.sampled == 1].drop_duplicates([*REGIME, "horizon", "seed"])
            students = (
                ends.groupby("base")[["guidance", "horizon", "seed"]].apply(lambda g: len(g.drop_duplicates())).sum()
            )
            shape = " x ".join(map(str, r.facts.shape))
            modes = f", {r.facts.modes} modes a class" if r.facts.modes else ""
            n = self.claims[self.claims.run == r.name][REGIME].drop_duplicates()
            parts.append(
                f"**{r.name}** ({r.family}, samples of shape {shape}{modes}): {students} students, {len(n)} regimes"
            )
        return f"Compared: {'; '.join(parts)}."

    def _primary(self, which: str, family: str | None = None) -> pd.DataFrame:
        """Claims by the primary metric (``teacher``), its sibling (``data``), or the ODE error (``ode``)."""
        name = {r.name: {"teacher": r.primary, "data": r.against_data, "ode": "ode_error"}[which] for r in self.runs}
        table = self.claims[self.claims.metric == self.claims.run.map(name)]
        return table if family is None else table[table.family == family]

    def where_c2_holds(self) -> str:
        """Counts by study, the regimes that support C2 against teacher and data, and the extremes."""
        lines = []
        for family in self.families:
            c1, teacher, data = (self._primary(k, family) for k in ("ode", "teacher", "data"))
            count = self._counted
            lines += [
                f"**{family}.** Of its {len(teacher)} regimes, C1 is {count(c1)} (where it is defined); C2 is {count(teacher)} "
                f"by the distance to the teacher's samples, and {count(data)} by the distance to data.",
                f"Regimes of {family} that support C2 by at least one of the two distances and are contradicted by neither: "
                f"{listed(self._holding(family))}.",
            ]
            best = regime_verdicts.strongest(teacher, teacher.metric.unique())
            for side in ("for", "against"):
                r = best[side]
                lines.append(
                    f"The strongest regime of {family} {side} C2, by the distance to the teacher's samples: {r.run}, "
                    f"{r.regime}: ratio {interval(r)}, {r.seeds} seeds ({r.verdict})."
                )
        return "\n\n".join(lines)

    def _holding(self, family: str) -> list[str]:
        """Regimes of a study that support C2 by at least one distance and are contradicted by neither."""
        parts = [regime_verdicts.supporting(self.claims, r) for r in self.of(family)]
        return [f"{r.run}, {r.regime}" for part in parts for r in part.itertuples()]

    def verdict_tables(self) -> dict[str, pd.DataFrame]:
        """By study, one line a regime; kept as markdown."""
        tables = regime_verdicts.readable(self.claims, self.runs)
        for family, table in tables.items():
            text = table.to_markdown(index=False) + "\n"
            write_text(self.folder / f"verdicts_{family}.md", text)
            caption = (
                f"Verdicts of the study {family} by regime and measure; effects are Direct CM against CM. {self.behind}"
            )
            self.items.append((f"verdicts_{family}", caption, text))
        return tables

    def do_measures_agree(self) -> str:
        """Of the regimes that support C2 by the primary metric, what the other measures say."""
        lines = []
        for family in self.families:
            metrics = {k: m for k, m in self.of(family)[0].metrics.items() if m.judged}
            primary = self.of(family)[0].primary
            held = self._primary("teacher", family)
            held = held[held.verdict == "supported"][REGIME]
            if not len(held):
                lines.append(f"No regime of {family} supports C2 by the distance to the teacher's samples.")
                continue
            others = self.claims[self.claims.metric.isin(set(metrics) - {primary})].merge(held, on=REGIME)
            each = [
                f"{metrics[k].label}: {', '.join(f'{int((t.verdict == v).sum())} {v}' for v in VERDICTS)}"
                for k, t in others.groupby("metric", sort=False)
            ]
            clash = others[others.verdict == "contradicted"].groupby(REGIME).ngroups
            lines.append(
                f"Of the {len(held)} regimes of {family} that support C2 by the distance to the teacher's samples, "
                f"{clash} are contradicted by at least one other measure ({'; '.join(each)})."
            )
        return "\n\n".join([*lines, *self.further_encoders()])

    def further_encoders(self) -> list[str]:
        """What the Frechet distances on further encoders say, of studies that have them."""
        lines = []
        for family in self.families:
            own, labels = self.claims[self.claims.family == family], self.of(family)[0].metrics
            for teacher, data in regimes.FURTHER.items():
                parts = [own[own.metric == name] for name in ("ode_error", teacher, data)]
                if not len(parts[1]):
                    continue
                held = [set(map(tuple, t[t.verdict == "supported"][REGIME].values)) for t in parts]
                all_three = [r for r in parts[1].itertuples() if tuple(getattr(r, k) for k in REGIME) in set.intersection(*held)]  # fmt: skip
                best = regime_verdicts.strongest(parts[1], [teacher])
                lines.append(
                    f"**{family}, by a further encoder** ({labels[teacher].label}). C2 is {self._counted(parts[1])} by the distance to "
                    f"the teacher's samples, and {self._counted(parts[2])} by the distance to data. Regimes that support C1, and C2 by "
                    f"both distances: {listed([f'{r.run}, {r.regime}' for r in all_three])}. Strongest for C2: {best['for'].run}, "
                    f"{best['for'].regime}: ratio {interval(best['for'])} ({best['for'].verdict}); against it: {best['against'].run}, "
                    f"{best['against'].regime}: ratio {interval(best['against'])} ({best['against'].verdict})."
                )
        return lines

    @staticmethod
    def _counted(table: pd.DataFrame) -> str:
        """How many regimes have each verdict."""
        return ", ".join(f"{v} in {int((table.verdict == v).sum())}" for v in VERDICTS)

    def counts(self) -> pd.DataFrame:
        """:func:`dcm.analysis.regime_verdicts.counts`: one line a study and measure."""
        return regime_verdicts.counts(self.claims, self.runs)

    @property
    def has_trainings(self) -> bool:
        """Whether a training at a constant learning rate kept snapshots."""
        return bool(self.rows.curve.any())

    def while_training(self) -> str:
        """The effect of C2 along each training, and whether the CM had stopped improving."""
        if not self.has_trainings:
            return "No training of these runs has a constant learning rate and snapshots, so there is no curve to show."
        lines, claims = [], self._primary("teacher")
        for run in self.runs:
            rows = run.rows[run.rows.curve]
            for base, part in regime_verdicts.curves(run, claims).groupby("base"):
                each = "; ".join(f"{r.moment}: {r.value:.3g} ({r.verdict})" for r in part.itertuples())
                cm = rows[(rows.base == base) & (rows.method == "CM")]
                last, before = (
                    cm[cm["update"] == u][run.primary].mean() for u in sorted(cm["update"].unique())[:-3:-1]
                )
                lines.append(
                    f"**{run.name}, {base}.** Ratio Direct CM / CM of the distance to the teacher's samples by updates: {each}. "
                    f"Over the last interval between snapshots the CM's own distance changed by {last / before - 1:+.0%}."
                )
        return "\n\n".join(lines)

    # Simpson's paradox

    def simpson(self) -> dict[str, tuple[pd.DataFrame, str, Slopes]]:
        """By study: its students (x, y: logarithms of ODE error and primary metric), the metric, slopes."""
        out = {}
        for family in self.families:
            metric = self.of(family)[0].primary
            rows = self.rows[(self.rows.family == family) & (self.rows.sampled == 1)]
            rows = rows.assign(x=np.log(rows.ode_error), y=np.log(rows[metric]))
            rows = rows[np.isfinite(rows.x) & np.isfinite(rows.y)]
            out[family] = (
                rows,
                metric,
                slopes.slopes(rows, "x", "y", REGIME, self.session.p.bootstrap, self.session.p.confidence),
            )
        table = pd.concat([s.by_group.assign(family=f) for f, (_, _, s) in out.items()])
        write_csv(self.folder / "slopes.csv", table)
        return out

    def pooled_and_within(self, parts: dict[str, tuple[pd.DataFrame, str, Slopes]]) -> str:
        """Pooled and within-setting slopes and correlations, within one method too, and whether they turn around."""
        lines = []
        for family, (rows, _, found) in parts.items():
            negative = int((found.by_group.slope < 0).sum())
            lines.append(
                f"**{family}.** Over all {len(rows)} students the slope is {interval(found.pooled)} and Spearman's correlation "
                f"{interval(found.rank_pooled)}; within settings the common slope is {interval(found.within)} and the mean "
                f"correlation {interval(found.rank_within)}. In {negative} of {len(found.by_group)} settings a lower ODE error "
                f"goes with worse samples. {self._paradox(found)}"
            )
            p = self.session.p
            gap = slopes.at_equal_error(rows, REGIME, p.bootstrap, p.confidence)
            ratio = Effect(np.exp(gap.value), np.exp(gap.low), np.exp(gap.high), gap.n)
            self.at_equal_error[family] = (
                f"At equal ODE error, by a fit over all settings of {family}, the Direct CM's distance to the teacher's "
                f"samples is {interval(ratio)} times the CM's."
            )
            lines.append(self.at_equal_error[family])
            try:
                seeds = slopes.slopes(
                    rows, "x", "y", [*REGIME, "method"], self.session.p.bootstrap, self.session.p.confidence
                )
                lines.append(
                    f"Among students of {family} that differ in their seed alone (one setting and one method) the slope is "
                    f"{interval(seeds.within)}, the mean correlation {interval(seeds.rank_within)}."
                )
            except InputError:
                pass  # fewer than three seeds
        return "\n\n".join(lines)

    @staticmethod
    def _paradox(found: Slopes) -> str:
        pooled, within = found.pooled, found.within
        if pooled.low > 0 and within.high < 0:
            return "The sign turns around: Simpson's paradox."
        if pooled.low > 0 and within.low > 0:
            return "The sign is the same within settings as over all."
        return "The intervals do not settle whether the sign turns around."

    # Explanations

    def measure_maps(self) -> Maps:
        """Maps of every student of every run; see :func:`dcm.evaluation.flow_maps.measure_maps`."""
        out = {run.name: run.maps or self._measured(run) for run in self.runs}
        for i, name in enumerate(runs.MAPS):
            table = pd.concat([tables[i].assign(run=run) for run, tables in out.items()])
            self._write_table(name, table)
        return out

    def _measured(self, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
        p, study = self.session.p, run.study
        assert study is not None  # else there are maps
        settings = run.records["3_ode_error"]["parameters"]
        evaluation = EvaluationSet(study, run.folder, settings["samples"], settings["seed"], self.session.device)
        # The exact teacher is cheap, so every direction and more points.
        points = min(p.map_samples * (EXACT_POINTS if study.exact else 1), settings["samples"])
        probes = int(np.prod(run.facts.shape)) if study.exact else p.probes
        groups = [load_group(run.folder, name) for name in run.groups]
        store = self.session.run_dir / "maps" / run.name
        by_time, starts = flow_maps.measure_maps(study, evaluation, groups, points, probes, store)
        return pd.DataFrame(by_time), pd.DataFrame(starts)

    def mechanisms(self, maps: Maps) -> pd.DataFrame:
        """:func:`dcm.analysis.explanations.mechanisms` of all runs."""
        tables = [explanations.mechanisms(r, *maps[r.name], self.claims[self.claims.run == r.name]) for r in self.runs]
        table = pd.concat(tables, ignore_index=True)
        self._write_table("mechanisms", table)
        return table

    def predictions(self, mechanisms: pd.DataFrame) -> dict[str, list[Prediction]]:
        """By study, what the explanations predict against what was measured."""
        p = self.session.p
        return {
            f: explanations.predictions(t, p.bootstrap, p.confidence)
            for f, t in mechanisms.groupby("family", sort=False)
        }

    def prediction_table(self, predictions: dict[str, list[Prediction]]) -> pd.DataFrame:
        """One line a prediction, estimates and outcomes by study."""
        out = []
        for made in zip(*predictions.values()):
            line = {"explanation": made[0].explanation, "prediction": made[0].statement, "estimate": made[0].unit}
            for family, p in zip(predictions, made):
                line[family] = (
                    f"{p.outcome}: {interval(p.estimate)}, {p.estimate.n} regimes"
                    if p.estimate.n
                    else "no regime supports C2"
                )
            out.append(line)
        return pd.DataFrame(out)

    def shown(self, maps: Maps) -> dict[str, pd.DataFrame]:
        """Rows by time of main groups: of each study the first run's, and that with the strongest effect of C2."""
        claims, out = self._primary("teacher"), {}
        for family in self.families:
            first = self.of(family)[0]
            part = self._main(claims[claims.family == family]).sort_values("value")
            for name in dict.fromkeys([first.name, *part.run[-1:]]):
                run = next(r for r in self.runs if r.name == name)
                rows = maps[name][0]
                group = run.groups[run.main].group
                out[name] = rows[(rows.group == run.main) & (rows.guidance == group.guidance[0])]
        return out

    def _main(self, claims: pd.DataFrame) -> pd.DataFrame:
        """Those on the runs' main settings."""
        mains = {(r.name, r.main, r.groups[r.main].group.guidance[0]) for r in self.runs}
        return claims[[key in mains for key in zip(claims.run, claims.group, claims.guidance)]]

    def starts(self, maps: Maps) -> pd.DataFrame:
        """Rows from noise of all runs."""
        return pd.concat([rows.assign(run=run) for run, (_, rows) in maps.items()], ignore_index=True)

    def by_steps(self) -> pd.DataFrame:
        """The effect of C2 of groups that were sampled in several steps."""
        claims = self._primary("teacher")
        claims = claims.assign(base=claims.group.str.partition("/")[0])
        several = claims[claims.group.str.contains("/")][["run", "base"]].drop_duplicates()
        claims = claims.merge(several)
        steps = claims.group.str.extract(r"/(\d+) steps")[0].fillna(1).astype(int)
        return claims.assign(steps=steps)[["family", "run", "steps", "value", "low", "high", "verdict"]].sort_values(
            ["run", "steps"]
        )

    def outcome(self, predictions: dict[str, list[Prediction]], explanation: str) -> str:
        """What was predicted and what was found, by study."""
        lines = []
        for family, made in predictions.items():
            own = [p for p in made if p.explanation == explanation]
            each = "; ".join(
                f"{p.statement}: {p.outcome} ({p.unit} {interval(p.estimate)}, {p.estimate.n} regimes)"
                if p.estimate.n else f"{p.statement}: no regime to test it on"
                for p in own
            )  # fmt: skip
            lines.append(f"**{family}: {explanations.survival(made)[explanation]}.** {each[0].upper()}{each[1:]}.")
        return "\n\n".join(lines)

    def accumulation(self, maps: Maps) -> str:
        """Whether a student's steps along the teacher's trajectory add up or cancel."""
        rows = self.starts(maps).merge(self.rows[["run", "family"]].drop_duplicates(), on="run")
        rows = rows[rows.method.isin(METHODS)]
        lines = []
        for family, part in rows.groupby("family", sort=False):
            medians = part.groupby("method").accumulation.median()
            each = ", ".join(f"{medians[m]:.2f} for the {m}" for m in METHODS)
            lines.append(
                f"A student's error is the sum of its steps along the teacher's trajectory; its square over the sum of their "
                f"squares (1: unrelated, N: all agree) has in {family} the median {each}."
            )
        return "\n\n".join(lines)

    # The end

    def fates(self, predictions: dict[str, list[Prediction]]) -> list[str]:
        """One line an explanation and study."""
        return [
            f"explanation {name}: {fate} ({family})"
            for family, made in predictions.items() for name, fate in explanations.survival(made).items()
        ]  # fmt: skip

    def main_verdicts(self) -> list[str]:
        """One line a run and claim, at its main setting."""
        return [
            f"{r.run}, main: {claim} {r.verdict}"
            for which, claim in (("ode", "C1"), ("teacher", "C2 (against the teacher's samples)"), ("data", "C2 (against data)"))
            for r in self._main(self._primary(which)).itertuples()
        ]  # fmt: skip

    def conclusion(self, predictions: dict[str, list[Prediction]]) -> str:
        """Which explanations survive where."""
        lines = []
        for family, made in predictions.items():
            fates = explanations.survival(made)
            each = [
                f"{fate}: {listed([n for n, f in fates.items() if f == fate])}"
                for fate in ("survives", "undecided", "refuted")
            ]
            tally = "; ".join(
                f"{n}: {', '.join(f'{sum(p.explanation == n and p.outcome == o for p in made)} {o}' for o in explanations.OUTCOMES.values())}"
                for n in fates
            )
            each.append(f"Of its predictions: {tally}")
            lines.append(f"**{family}**, over the {made[0].estimate.n} settings that support C2. {'. '.join(each)}.")
        both = set.intersection(
            *[{n for n, f in explanations.survival(made).items() if f == "survives"} for made in predictions.values()]
        )
        lines.append(f"Explanations that survive in every study here: {listed(sorted(both))}.")
        return "\n\n".join(lines)

    def limits(self) -> str:
        """What the design cannot say."""
        sizes = ", ".join(f"{r.name}: {self.claims[self.claims.run == r.name].seeds.max()}" for r in self.runs)
        return (
            f"**Limits.** Seeds a regime: {sizes}; intervals of so few are optimistic, and regimes of one run share teacher and "
            "evaluation noise, so they are no independent sample of all regimes. Teacher and students start from the same "
            "noise, so a small ODE error alone keeps the distance to the teacher's samples small: that distance leans towards "
            "the Direct CM, the distance to data does not. Which regimes "
            "count as supporting C2 for the explanations (by either distance, contradicted by neither) was settled after the "
            "first verdicts on digits had been seen. A study's verdict rests on its first encoder, chosen before; further encoders "
            "stand beside it. A "
            "correlation over regimes does not show a cause: what an explanation names may go with what causes it. Teachers "
            f"here are of the studies {', '.join(self.families)}; nothing above was measured on SDXL."
        )

    def summary(self, predictions: dict[str, list[Prediction]]) -> str:
        """What the README quotes: the counts, the extremes, the fates, and the table of predictions."""
        lines = [line for line in self.where_c2_holds().split("\n\n")]
        minutes = sum(r.get("wall_seconds", 0) for r in self.records.values()) / 60
        spent = f"Wall time of all notebooks behind it, one after the other: {minutes:.0f} minutes."
        bullets = [
            f"- {line}"
            for line in [
                *lines,
                *self.further_encoders(),
                *self.at_equal_error.values(),
                *self.conclusion(predictions).split("\n\n"),
                spent,
            ]
        ]
        tables = [self.counts(), self.prediction_table(predictions)]
        return "\n".join([*bullets, "", *(f"{table.to_markdown(index=False)}\n" for table in tables)])

    def write(self, maps: Maps, mechanisms: pd.DataFrame, predictions: dict[str, list[Prediction]]) -> None:
        """Write tables, summary.md, provenance.json and README.md of the results folder."""
        table = self.prediction_table(predictions)
        write_csv(self.folder / "predictions.csv", table)
        write_text(self.folder / "predictions.md", table.to_markdown(index=False) + "\n")
        write_text(self.folder / "summary.md", self.summary(predictions))
        write_json(self.folder / "studies.json", {run.name: asdict(run.facts) for run in self.runs})
        records = self.records
        parameters = {notebook: record["parameters"] for notebook, record in records.items()}
        write_json(
            self.folder / "provenance.json",
            {
                "study": "regimes", "commit": self.session.provenance.record["commit"], "parameters": fingerprint(parameters),
                "wall_seconds": round(sum(r.get("wall_seconds", 0) for r in records.values()), 1),
                "teacher_evaluations": sum(r.get("teacher_evaluations", 0) for r in records.values()),
                "notebooks": records,
            },
        )  # fmt: skip
        lines = [
            "# When do better ODE solutions give worse samples?",
            "",
            "Drawn by `notebooks/6_when_it_fails.ipynb`; do not edit.",
            "",
        ]
        lines += [part for text in self.said for part in (text, "")]
        for name, caption, body in [
            *self.items,
            ("predictions", "What each explanation predicts, and what was measured.", table.to_markdown(index=False)),
        ]:
            lines += [f"## {name}", "", caption, "", body, ""]
        write_text(self.folder / "README.md", "\n".join(lines))
