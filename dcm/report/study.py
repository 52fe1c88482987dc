"""What notebook 5 reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dcm import solvers
from dcm.analysis import compare, tables
from dcm.figures import style
from dcm.horizon import method_name
from dcm.metrics.metric import Metric
from dcm.notebook import Session
from dcm.parameters.notebooks import TrainingParameters, check_ends
from dcm.report import page, provenance
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, project_path, read_json, read_tensors, write_csv, write_json, write_text
from dcm.training.run import MEMORY
from dcm.training.saved import DistilledGroup, load_group

ROW_KEY = ["group", "solver", "intervals", "guidance", "horizon", "method", "seed", "update", "steps"]


class Report:
    """Collects what notebook 5 draws and writes it into the results folder.

    Attributes
    ----------
    rows : one row a student, snapshot and number of sampling steps: ODE error and every quality metric.
    teacher : the teacher's own quality by setting. by_time : ODE error by starting time.
    shown_metrics : quality metrics that sweeps show.
    """

    def __init__(self, session: Session, main: DistilledGroup):
        check_ends(main.name, asdict(main.group))
        self.session, self.main = session, main
        self.folder = project_path(session.p.results_dir)
        self.metrics = session.study.quality.metrics
        ode, quality = self._read("ode_error"), self._read("quality")
        rows = ode.merge(quality, on=ROW_KEY, how="inner", validate="one_to_one")
        if len(rows) < len(ode):
            raise InputError("notebooks 3 and 4 measured different students; run both again with the same parameters.")
        if main.name not in set(rows.group):
            there = ", ".join(sorted(set(rows.group)))
            raise InputError(
                f"main_group = {main.name!r} is not among the groups that were measured; allowed: {there}."
            )
        rows["final"] = rows["update"] == rows.groupby("group")["update"].transform("max")
        self.rows = rows.sort_values(ROW_KEY, kind="stable").reset_index(drop=True)
        self.teacher, self.by_time = self._read("teacher_quality"), self._read("ode_error_by_time")
        self.mark = fingerprint(json.loads(rows.to_json()))
        self.items: list[tuple[str, str, str]] = []

    def _read(self, name: str) -> pd.DataFrame:
        path = self.session.run_dir / f"{name}.csv"
        if not path.exists():
            raise InputError(f"{path} does not exist; run notebooks 3 and 4 first.")
        return pd.read_csv(path)

    @property
    def shown_metrics(self) -> list[str]:
        """The study's primary metric and those that it names beside it."""
        quality = self.session.study.quality
        return [quality.primary, *quality.secondary_metrics]

    @cached_property
    def trained_alike(self) -> list[str]:
        """Groups whose training parameters (updates, lr, ..) are the main group's."""
        free = {"snapshots", "checkpoint_seconds", "updates_per_solve", "solves_in_flight", *MEMORY}
        names = set(TrainingParameters.model_fields) - free
        main = self.main.about["parameters"]
        others = {n: load_group(self.session.run_dir, n).about["parameters"] for n in self.rows.group.unique()}
        return [n for n, p in others.items() if all(p.get(k) == main.get(k) for k in names)]

    def along(self, column: str) -> pd.DataFrame:
        """Final one-step rows that differ from the main setting in `column` alone, trained as it is."""
        g, rows = self.main.group, compare.final_one_step(self.rows)
        main = {"solver": g.solver, "intervals": g.intervals, "guidance": g.guidance[0]}
        keep = rows.group.isin(self.trained_alike)
        for name, value in main.items():
            if name != column:
                keep &= rows[name] == value
        return rows[keep].drop_duplicates(["solver", "intervals", "guidance", "horizon", "seed"])

    @cached_property
    def trained_alone(self) -> pd.DataFrame:
        """One-step rows, every snapshot, of CMs and Direct CMs of the main setting that shared no trajectory.

        With what they had spent by then: columns ``network_evaluations`` and ``seconds``. Empty unless there are both.
        """
        g, parts = self.main.group, []
        same = (self.rows.solver == g.solver) & (self.rows.intervals == g.intervals)
        rows = self.rows[same & (self.rows.guidance == g.guidance[0]) & (self.rows.steps == 1)]
        for name, part in rows[rows.horizon.isin([1, g.intervals])].groupby("group"):
            group = load_group(self.session.run_dir, name)
            if len(group.group.horizons) == len(group.group.guidance) == 1:
                cost = group.cost_an_update
                spent = {"network_evaluations": cost["evaluations"], "seconds": cost["seconds"]}
                parts.append(part.assign(**{c: part["update"] * v for c, v in spent.items()}))
        rows = pd.concat(parts) if parts else rows[:0]
        return rows if rows.method.nunique() == 2 else rows[:0]

    def teacher_along(self, column: str) -> pd.DataFrame:
        """The teacher's rows of the settings in :meth:`along`."""
        settings = self.along(column)[["solver", "intervals", "guidance"]].drop_duplicates()
        return self.teacher.merge(settings, on=["solver", "intervals", "guidance"])

    def behind(self, rows: pd.DataFrame) -> str:
        """What stands behind a figure, for its caption: setting, seeds, updates."""
        parts = []
        for column, text in (("solver", "{}"), ("intervals", "N = {}"), ("guidance", "w = {:g}")):
            if rows[column].nunique() == 1:
                value = rows[column].iloc[0]
                parts.append(text.format(solvers.SOLVER_NAMES.get(value, value)))
        seeds = rows.groupby([*compare.SETTING, "horizon"]).seed.nunique()
        count = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
        updates = rows["update"].max() if "update" in rows else self.main.updates[-1]
        band = "; bands are 95 % bootstrap intervals of the mean" if seeds.max() > 1 else ""
        return f"{', '.join(parts) + '; ' if parts else ''}{count} seeds, {updates} updates{band}."

    def shown_samples(self):
        """The samples that notebook 4 kept for fig2: ({label: samples}, condition)."""
        tensors, _ = read_tensors(self.session.run_dir / "samples_shown.safetensors")
        condition = tensors.pop("condition")
        order = ["teacher", *sorted((k for k in tensors if k != "teacher"), key=lambda k: (k.startswith("Direct"), k))]
        shown = {k: tensors[k] for k in order if " 8 step" not in k}
        return shown, condition[: len(shown["teacher"])]

    def shown_rows(self, steps: Iterable[int] = (1, 2, 4)) -> pd.DataFrame:
        """The rows of the students in fig1 and fig2: of the main group both ends of the horizon, first seed."""
        g, rows = self.main.group, self.rows
        keep = rows.final & (rows.group == self.main.name) & (rows.guidance == g.guidance[0])
        keep &= (rows.seed == g.seeds[0]) & rows.horizon.isin([1, g.intervals]) & rows.steps.isin(list(steps))
        return rows[keep]

    @cached_property
    def records(self) -> dict[str, dict]:
        """What the notebooks behind these results noted of themselves, this one included.

        What an earlier configuration left in the run folder has no part in them.
        """
        made_of = {
            "1_teacher",
            "3_ode_error",
            "4_sample_quality",
            *(f"2_distill-{g}" for g in self.rows.group.unique()),
        }
        paths = sorted((self.session.run_dir / "provenance").glob("*.json"))
        records = {path.stem: read_json(path) for path in paths if path.stem in made_of}
        return records | {self.session.notebook: self.session.provenance.record}

    @property
    def parameters(self) -> dict[str, dict]:
        """Parameters of every notebook behind these results."""
        return {notebook: record["parameters"] for notebook, record in self.records.items()}

    def add(
        self,
        name: str,
        figure: Figure,
        caption: str,
        rows: pd.DataFrame | None = None,
        teacher: pd.DataFrame | None = None,
        by_time: pd.DataFrame | None = None,
        files: Iterable[Path] = (),
    ) -> None:
        """Save a figure as png and pdf and keep its caption.

        `rows`, `teacher` and `by_time` are the parts of these tables that it was drawn from, `files` whatever else.
        """
        parts = [("metrics", self.rows, rows), ("teacher_quality", self.teacher, teacher)]
        parts.append(("ode_error_by_time", self.by_time, by_time))
        drawn_from = [
            provenance.of_rows(self.folder / f"{table_name}.csv", table, part, self.folder)
            for table_name, table, part in parts
            if part is not None
        ]
        if rows is not None:  # metrics.csv joins these two
            files = [self.session.run_dir / "ode_error.csv", self.session.run_dir / "quality.csv", *files]
        record = {
            "study": self.session.p.study, "figure": name, "caption": caption,
            "commit": self.session.provenance.record["commit"],
            "parameters": provenance.of_parameters(self.parameters, self.folder / "provenance.json", self.folder),
            "drawn_from": drawn_from + [provenance.of_file(path, self.folder) for path in files],
        }  # fmt: skip
        page.save(figure, self.folder, record)
        self.items.append((name, caption, f"![{name}]({name}.png)"))

    def add_table(self, name: str, table: pd.DataFrame, readable: pd.DataFrame, caption: str) -> None:
        """Save a table as csv (all digits) and markdown (rounded)."""
        write_csv(self.folder / f"{name}.csv", table)
        text = readable.to_markdown(index=False)
        write_text(self.folder / f"{name}.md", text + "\n")
        self.items.append((name, caption, text))

    def _at_main(self, claims: pd.DataFrame) -> pd.DataFrame:
        g = self.main.group
        at = (claims.group == self.main.name) & (claims.guidance == g.guidance[0])
        return claims[at & ((claims.claim == "C1") | (claims.metric == self.session.study.quality.primary))]

    def verdict_lines(self, claims: pd.DataFrame, numbers: bool = True) -> list[str]:
        """The two claims at the main setting and how often each verdict fell over all settings, as lines of text."""
        lines = []
        primary = self.session.study.quality.primary
        for row in self._at_main(claims).itertuples():
            label = "ODE error" if row.claim == "C1" else self.metrics[row.metric].label
            lines.append(f"{row.claim} {row.verdict}: {compare.CLAIMS[row.claim]}")
            if numbers:
                what = f"{label}, Direct CM {'/' if row.effect == 'ratio' else '-'} CM"
                lines.append(f"   {what}: {row.value:.3g} [{row.low:.3g}, {row.high:.3g}], {row.seeds} seeds")
        if numbers:
            for claim, name in (("C1", "ode_error"), ("C2", primary)):
                part = claims[(claims.claim == claim) & (claims.metric == name)]
                few = part[part.seeds < compare.MIN_SEEDS]
                counts = part.drop(few.index).verdict.value_counts()
                each = ", ".join(f"{counts.get(v, 0)} {v}" for v in ("supported", "contradicted", "inconclusive"))
                lines.append(f"{claim} over {counts.sum()} {'setting' if counts.sum() == 1 else 'settings'}: {each}")
                if len(few):
                    lower = (few.value < few.effect.map({"ratio": 1, "difference": 0})).sum()
                    what = "ODE error" if claim == "C1" else self.metrics[name].label
                    lines.append(
                        f"   {len(few)} more with too few seeds for an interval: {what} lower for the Direct CM in {lower}"
                    )
        return lines

    def _notes(self) -> list[str]:
        """What helps to read the numbers: the metrics' background and, for images, how far real ones are apart."""
        count = self.records["4_sample_quality"]["parameters"]["samples"]
        notes = [self._best_horizons(), f"Quality is measured on {count} samples of each student."]
        notes.append(self.session.study.quality.note)
        for row in self.teacher[self.teacher.solver == "real images"].itertuples():
            text = f"For scale: as many real training images have a Frechet distance of {row.fd_real:.3g} to the held-out ones"
            notes.append(f"{text}, and {row.agreement:.1%} of them agree with their class.")
        return notes

    def _best_horizons(self) -> str:
        """Which horizon of the main group is best by the ODE error and by each metric, on the mean over seeds."""
        main = compare.final_one_step(self.rows[self.rows.group == self.main.name])
        names = {"ode_error": Metric("ODE error")} | {k: m for k, m in self.metrics.items() if m.judged}
        best: dict[str, list[str]] = {}
        for column, metric in names.items():
            means = main.groupby("horizon")[column].mean()
            if means.notna().all():
                h = means.idxmin() if metric.lower_is_better else means.idxmax()
                best.setdefault(method_name(int(h), self.main.group.intervals), []).append(metric.label)
        each = "; ".join(f"{name} by {', '.join(labels)}" for name, labels in best.items())
        return f"Best of the horizons {', '.join(map(str, sorted(main.horizon.unique())))} (mean over seeds): {each}"

    def readable_verdicts(self, claims: pd.DataFrame) -> pd.DataFrame:
        """The verdict table with labels and rounded intervals."""
        label = {"ode_error": "ODE error"} | {k: m.label for k, m in self.metrics.items()}
        return pd.DataFrame(
            {
                "claim": claims.claim, "solver": claims.solver.map(solvers.SOLVER_NAMES), "N": claims.intervals,
                "w": claims.guidance.map("{:g}".format), "group": claims.group, "metric": claims.metric.map(label),
                "Direct CM against CM": [compare.stated(r) for r in claims.itertuples()],
                "seeds": claims.seeds, "verdict": claims.verdict,
            }
        )  # fmt: skip

    def budget_table(self, equal: pd.DataFrame, claims: pd.DataFrame) -> pd.DataFrame:
        """`claims` at equal budgets as :meth:`readable_verdicts` has them, with both models' means and updates."""
        means = equal.groupby(["group", "method"]).mean(numeric_only=True)
        table = self.readable_verdicts(claims)
        for method in style.METHODS:
            at = [means.loc[(r.group, method)] for r in claims.itertuples()]
            table[f"{method}, updates"] = [f"{m['update']:.0f}" for m in at]
            table[method] = [f"{m[r.metric]:.3g}" for m, r in zip(at, claims.itertuples())]
        spent = [f"{method}, updates" for method in style.METHODS]
        effect = "Direct CM against CM"
        columns = ["group", *spent, "claim", "metric", *style.METHODS, effect, "seeds", "verdict"]
        order = [f"equal {name}" for name in tables.BUDGETS.values()]
        return table[columns].sort_values("group", key=lambda g: g.map(order.index), kind="stable")

    def write(self, claims: pd.DataFrame) -> None:
        """Write metrics.csv, provenance.json and README.md of the results folder."""
        write_csv(self.folder / "metrics.csv", self.rows)
        write_csv(self.folder / "ode_error_by_time.csv", self.by_time)
        for extra in ("solver_error", "teacher_quality"):
            path = self.session.run_dir / f"{extra}.csv"
            if path.exists():
                write_csv(self.folder / f"{extra}.csv", pd.read_csv(path))
        now, records = self.session.provenance.record, list(self.records.values())[:-1]
        write_json(
            self.folder / "provenance.json",
            {
                "study": self.session.p.study, "commit": now["commit"], "metrics": self.mark,
                "parameters": fingerprint(self.parameters),
                "wall_seconds": round(sum(r["wall_seconds"] for r in records), 1),
                "teacher_evaluations": sum(r.get("teacher_evaluations", 0) for r in records),
                "notebooks": self.records,
            },
        )  # fmt: skip
        lines = [
            f"# Results of the study `{self.session.p.study}`",
            "",
            "Drawn by `notebooks/5_figures.ipynb`; do not edit.",
            "",
        ]
        lines += [f"- {line.strip()}" for line in [*self.verdict_lines(claims), *self._notes()]] + [""]
        for name, caption, body in self.items:
            lines += [f"## {name}", "", caption, "", body, ""]
        write_text(self.folder / "README.md", "\n".join(lines))
