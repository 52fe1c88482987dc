"""What notebooks 6 and 7 report: the switch at every scale that was measured, and the regimes of many trainings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dcm.analysis import predictions, runs
from dcm.analysis import switch as analysis
from dcm.analysis.compare import STABLE, interval
from dcm.analysis.measured import final_one_step
from dcm.analysis.predictions import FAILED, HELD, OPEN, scale_of
from dcm.analysis.runs import REGIME, Results
from dcm.analysis.switch import BLURRED, EQUAL, FEW_STEPS, GAINS, SWITCH, TERMS, UNBLURRED
from dcm.report.page import Page
from dcm.report.sentences import counted
from dcm.solvers import SOLVER_NAMES
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_json


def named(at, main: str) -> str:
    """A setting in words; `at` has the attributes of :data:`SETTING_OF_RUN`, and its run the group `main`."""
    other = [at.group] * (at.group != main) + [SOLVER_NAMES[at.solver]] * (at.solver != "ddim")
    return ", ".join([at.run, *other, f"N = {at.intervals:g}", f"w = {at.guidance:g}"])


def scales_of(found: Sequence[Results]) -> dict[str, str]:
    """By run: the scale that it is at in the predictions; the run's own name where that is none, or another run's as well."""
    places: dict[tuple, str] = {}
    for r in found:
        main = r.groups[r.main]
        places.setdefault((scale_of(r), main.intervals, *main.guidance), r.name)
    named = {run: scale for (scale, *_), run in places.items()}
    return {r.name: named.get(r.name) or r.name for r in found}


@dataclass
class Switch:
    """Results that have a pair of the switch, and others whose settings stand in the plane beside them.

    `effects`, `accounting` and `costs` are of :mod:`dcm.analysis.switch`, of all results, with ``name``: the setting in
    words, ``scale``: that of the predictions, or the run, and ``main``: whether it is the first of its run (:attr:`main`).
    `missing`: folders that are not there.
    """

    results: list[Results]
    effects: pd.DataFrame
    accounting: pd.DataFrame
    costs: pd.DataFrame
    sources: list[Path]
    missing: list[str]

    @classmethod
    def load(cls, folders: Sequence[str]) -> "Switch":
        """Those of `folders` that are there. Raises :class:`InputError` where none has a switch, or two have one name."""
        there = [f for f in folders if (project_path(f) / "metrics.csv").exists()]
        found = [results for folder in there for results in runs.load(folder)]
        main = [named(s.iloc[0], r.main) for r in found if len(s := analysis.settings(r))]
        mains, scales = {r.name: r.main for r in found}, scales_of(found)
        if not main:
            four = "horizons: [cm, direct, direct>cm, cm>direct]"
            raise InputError(f"results = {list(folders)} has no group with a pair of the switch; its four students are {four}.")
        if len(mains) < len(found):
            raise InputError("two of the results have folders of one name; give each its own.")

        def joined(of: Callable) -> pd.DataFrame:
            table = pd.concat([t for r in found if len(t := of(r))], ignore_index=True)
            table = table.assign(name=[named(at, mains[at.run]) for at in table.itertuples()], scale=table.run.map(scales))
            return table.assign(main=table.name.isin(main))

        effects, accounting, costs = map(joined, (analysis.effects, analysis.accounting, analysis.costs))
        sources = [project_path(f) / "metrics.csv" for f in there]
        return cls(found, effects, accounting, costs, sources, [f for f in folders if f not in there])

    @property
    def main(self) -> list[tuple[Results, pd.Series]]:
        """The first setting of every run that has a switch: the main group's, where that has one."""
        return [(r, s.iloc[0]) for r in self.results if len(s := analysis.settings(r))]

    def courses(self) -> list[tuple[str, str, str, dict[str, pd.DataFrame]]]:
        """The panels of :func:`dcm.figures.switch.switch`, of settings that were measured at the switch too."""
        out, of_setting = [], self.effects.drop_duplicates("name").set_index("name")
        for r, setting in self.main:
            if not len((of := analysis.course(r, setting))["before"]):
                continue
            name = named(setting, r.main)
            scale, cm = of_setting.loc[name, ["scale", "cm"]]
            title = name.replace(r.name, scale, 1) + f" ({cm})" * (cm != STABLE)
            column, metric = next((c, metric) for c, (role, metric) in runs.measures(r.study).items() if role == "teacher")
            out.append((title, metric.label.replace(" to teacher", ""), column, of))
        return out

    def page(self, folder: str, own: dict) -> Page:
        """A page in `folder` with the tables that figures are drawn from; `own` is the record of this notebook."""
        page = Page(project_path(folder), "switch", {own["notebook"]: own})
        rows = [analysis.at(r.rows, s)[lambda t: t.steps == 1] for r in self.results for s in analysis.settings(r).itertuples(index=False)]
        page.csv("metrics", pd.concat(rows, ignore_index=True), *self.sources)
        page.csv("verdicts", self.effects, *self.sources)
        page.csv("accounting", self.accounting, *self.sources)
        return page

    def table(self) -> pd.DataFrame:
        """The switch: a line a setting and pair, both claims by every encoder, and over all encoders."""
        about = lambda rows: {"seeds": rows.seeds.max()} | by_role(rows)
        return pd.DataFrame([{"setting": name, "pair": pair} | about(rows) for (name, pair), rows in self._by_pair])

    def features(self) -> pd.DataFrame:
        """The paired error after every encoder: a line a setting, pair and encoder."""
        return self._wide(SWITCH, ["features"], lambda e: e.verdict)

    def gains(self) -> pd.DataFrame:
        """What ``direct>cm`` and ``anneal`` gain at equal updates, and evaluations: a line a setting and measure."""
        return self._wide(GAINS | EQUAL, ["error", "teacher"], better)

    def few_steps(self) -> pd.DataFrame:
        """C2 in one sampling step and in several: a line a setting and measure."""
        there = self.effects[self.effects.pair.isin(FEW_STEPS)].name
        return self._wide(SWITCH | FEW_STEPS, ["teacher"], lambda e: e.verdict, there)

    def blur(self) -> pd.DataFrame:
        """C2 of samples as they are, with the teacher's power spectrum, and of blurred CMs: a line a setting and measure."""
        there = self.effects[self.effects.pair.isin(UNBLURRED)].name
        return self._wide(SWITCH | UNBLURRED | BLURRED, ["teacher"], lambda e: e.verdict, there)

    def _wide(self, pairs: Iterable[str], roles: list[str], says: Callable, names: pd.Series | None = None) -> pd.DataFrame:
        """A line a setting (of `names`) and measure, a column a pair: interval, and what it `says`."""
        rows = self.effects[self.effects.pair.isin(list(pairs)) & self.effects.role.isin(roles)]
        rows = rows if names is None else rows[rows.name.isin(names)]
        text = [f"{interval(e)} {says(e)}" for e in rows.itertuples()]
        table = pd.DataFrame({"setting": rows.name, "measure": rows.label, "pair": rows.pair, "text": text})
        wide = table.pivot(index=["setting", "measure"], columns="pair", values="text")
        return wide[[p for p in pairs if p in wide]].fillna("").reset_index()

    def readable_costs(self) -> pd.DataFrame:
        """Teacher evaluations a sample and update, by setting and method."""
        wide = self.costs.pivot(index="name", columns="method", values="evaluations")
        return wide.sort_values("CM", kind="stable").round(2).reset_index(names="setting")

    def readable_accounting(self) -> pd.DataFrame:
        """The three terms, rounded."""
        table = self.accounting[["name", "pair", "encoder", *TERMS, "log_c2", "seeds", "cm"]].round(3)
        return table.rename(columns=TERMS | {"name": "setting", "log_c2": "log C2", "cm": "CM"})

    @property
    def _by_pair(self):
        return self.effects[self.effects.pair.isin(SWITCH)].groupby(["name", "pair"], sort=False)

    def predictions(self) -> pd.DataFrame:
        """:func:`dcm.analysis.predictions.outcomes` by these results."""
        return predictions.outcomes(self.results, self.effects)

    def lines(self) -> list[str]:
        """What each setting says, checked by nbval: verdicts without numbers."""
        return [f"{name}, {pair}: C1 {c1(rows)}, C2 {said(rows)}" for (name, pair), rows in self._by_pair]

    def what_was_read(self) -> str:
        """Runs, settings, seeds, and what is not there."""
        each = [f"**{r.name}** ({r.study}, {len(s)} setting{'s' * (len(s) > 1)})" for r in self.results if len(s := analysis.settings(r))]
        gone = f" Not there: {', '.join(self.missing)}." if self.missing else ""
        return f"Switches of {'; '.join(each)}; {len(self.results)} runs in the plane.{gone}"

    def on_modes(self) -> list[str]:
        """Of mixtures, how many of the samples lie on a mode at all, in the main settings."""
        out = []
        for r, setting in self.main:
            if "on_mode" in r.rows:
                shares = analysis.at(final_one_step(r.rows), setting).groupby("method").on_mode.mean()
                cm, direct = shares["CM"], shares["Direct CM"]
                out.append(f"{named(setting, r.main)}: {cm:.1%} of the CM's samples lie on a mode, {direct:.1%} of the Direct CM's.")
        return out

    def about_blur(self) -> str:
        """Whether the loss of samples is one of sharpness alone, in numbers."""
        rows = self.effects[(self.effects.role == "teacher") & self.effects.name.isin(self.blur().setting)]
        if not len(rows):
            return "No samples of these results were filtered to another power spectrum (workflow/gains.py)."
        of = {name: rows[rows.pair.isin(pairs)].value for name, pairs in {"as they are": SWITCH, "with the teacher's power spectrum in both": UNBLURRED, "with the CM's blurred to the Direct one's": BLURRED}.items()}
        return f"C2 from equal weights, over encoders: {', '.join(f'{v.min():.2f} to {v.max():.2f} {name}' for name, v in of.items())}."

    def takeaway(self) -> str:
        """Where both claims hold from equal weights, and where they do not, in numbers."""
        switch = self.effects[self.effects.pair.isin(SWITCH)]
        clear, unstable = analysis.from_equal_weights(self.effects), switch[switch.cm != STABLE].name.unique()
        holds = lambda rows: all(c1(e) == "supported" and "supported" in said(e) for _, e in rows.groupby("pair"))
        both = {str(name): holds(rows) for name, rows in clear.groupby("name", sort=False)}
        held, rest = ([name for name, state in both.items() if state == wanted] for wanted in (True, False))
        text = f"**Takeaway.** From equal weights both claims hold at once, by every pair, in {len(held)} of {len(held) + len(rest)} settings with a stable CM"
        text += f" ({'; '.join(held)})" * bool(held) + f"; not in {'; '.join(rest)}" * bool(rest)
        text += f". Without a stable CM, and so without a verdict: {'; '.join(unstable)}" * bool(len(unstable))
        terms = self.accounting[self.accounting.cm == STABLE]
        if len(terms):
            each = [f"{TERMS[t].split(':')[0]} adds {terms[t].min():+.2f} to {terms[t].max():+.2f}" for t in TERMS]
            text += f". In log C2, over these settings and all encoders, {', '.join(each)}"
        counts = self.predictions().outcome.value_counts()
        return text + f". Of the predictions {', '.join(f'{counts.get(s, 0)} {s}' for s in (HELD, FAILED, OPEN))}."


def by_role(rows: pd.DataFrame) -> dict[str, str]:
    """Both claims in one setting and pair, by every encoder: ratio, interval and verdict; and :func:`said`."""
    columns = {"error": "C1: ODE error", "teacher": "C2: distance to teacher", "data": "C2: distance to data"}
    # The encoder of a distance stands behind a comma; the ODE error has none.
    of = lambda e: f"{e.label.partition(', ')[2]} {interval(e)} {e.verdict}".strip()
    each = {column: "; ".join(map(of, rows[rows.role == role].itertuples())) for role, column in columns.items()}
    return each | {"C2 over encoders": said(rows)}


def better(e) -> str:
    """What a ratio says of the first of its pair, lower being better."""
    return ("better" if e.value < 1 else "worse") if e.verdict in ("supported", "contradicted") else e.verdict.replace("inconclusive", "open")


def c1(rows: pd.DataFrame) -> str:
    """The verdict on C1 in one setting and pair; empty where it was not asked."""
    return next(iter(rows.verdict[rows.role == "error"]), "")


def said(rows: pd.DataFrame) -> str:
    """The verdict on C2 by the distances to the teacher's samples in one setting and pair, over encoders where there are several."""
    first = rows[rows.role == "teacher"].iloc[0]
    return first.encoders or first.verdict


@dataclass
class Regimes:
    """Runs, and :func:`dcm.analysis.runs.regimes` of all of them: ``claims``."""

    runs: list[Results]
    claims: pd.DataFrame

    @classmethod
    def load(cls, folders: Sequence[str]) -> "Regimes":
        """Those of all `folders`; raises :class:`InputError` where two have one name or there is nothing to compare."""
        found = [run for folder in folders for run in runs.load(folder)]
        if len({r.name for r in found}) < len(found):
            raise InputError("two of the runs have folders of one name; give each its own.")
        claims = pd.concat([runs.regimes(r) for r in found], ignore_index=True)
        if not len(claims):
            raise InputError("no group of the runs has both a CM and a Direct CM; there is nothing to compare.")
        return cls(found, claims)

    def page(self, folder: str, own: dict) -> Page:
        """A page in `folder` with the rows and the verdicts, which figures are drawn from; `own` is this notebook's record."""
        records = {f"{run.name}/{name}": record for run in self.runs for name, record in run.records.items()}
        page = Page(project_path(folder), "regimes", records | {own["notebook"]: own})
        page.csv("metrics", pd.concat([r.rows for r in self.runs], ignore_index=True))
        page.csv("verdicts", self.claims)
        write_json(page.folder / "studies.json", {run.name: run.study for run in self.runs})
        return page

    def table(self) -> pd.DataFrame:
        """A line a regime: both claims by every distance, over encoders, and whether the CM is stable."""
        about = lambda rows: {"seeds": rows.seeds.max(), "CM": rows.cm.iloc[0]} | by_role(rows)
        regimes = self.claims.groupby(["run", "regime"], sort=False)
        return pd.DataFrame([{"run": run, "regime": regime} | about(rows) for (run, regime), rows in regimes])

    def counts(self) -> list[str]:
        """By study, how often each verdict fell by the ODE error and every distance, and how often both claims hold."""
        lines, judged = [], self.claims[self.claims.role.isin(["error", "teacher", "data"])]
        for study, table in judged.groupby("study", sort=False):
            regimes = [rows for _, rows in table.groupby(REGIME)]
            both = sum(c1(rows) == "supported" and "supported" in said(rows) for rows in regimes)
            each = "; ".join(f"{label}: {counted(part)}" for label, part in table.groupby("label", sort=False))
            over = "by the distance to the teacher's samples, over encoders where there are several"
            lines.append(f"**{study}**, {len(regimes)} regimes. {each}. C1 and C2 at once, {over}: {both}.")
        return lines
