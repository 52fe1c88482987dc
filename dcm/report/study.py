"""What notebook 5 reports: the measured tables of one study, joined, and the parts of them that figures show."""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from torch import Tensor

from dcm.analysis.measured import final_one_step, measured, read, with_columns
from dcm.metrics.metric import Metric
from dcm.parameters.check import refusal
from dcm.parameters.notebooks import TrainingParameters, check_ends
from dcm.report.page import Page
from dcm.support.errors import InputError
from dcm.support.files import project_path, read_json, read_tensors
from dcm.training.run import MEMORY
from dcm.training.saved import DistilledGroup, load_group

AT = ["solver", "intervals", "guidance"]


@dataclass
class StudyResults:
    """The tables of one study; the main table and the sweeps are centred on the group `main`.

    `rows` are of :func:`dcm.analysis.measured.measured`, `teacher` is the teacher's own quality by setting.
    """

    run_dir: Path
    main: DistilledGroup
    rows: pd.DataFrame
    teacher: pd.DataFrame
    by_time: pd.DataFrame

    @classmethod
    def load(cls, run_dir: Path, main: DistilledGroup, metrics: dict[str, Metric]) -> "StudyResults":
        """What notebooks 3 and 4 measured; raises :class:`InputError` where they lack the main group, or its ends."""
        check_ends(main.name, asdict(main.group))
        rows = measured(run_dir, metrics)
        if main.name not in (groups := set(rows.group)):
            raise refusal("main_group", main.name, ", ".join(sorted(groups)), ": it was not measured")
        teacher = with_columns(read(run_dir, "teacher_quality"), metrics)
        return cls(run_dir, main, rows, teacher, read(run_dir, "ode_error_by_time"))

    @cached_property
    def groups(self) -> dict[str, DistilledGroup]:
        """Every group that was measured, by name, without its weights."""
        return {name: replace(load_group(self.run_dir, name), tensors={}) for name in self.rows.group.unique()}

    def along(self, column: str) -> pd.DataFrame:
        """Final one-step rows that differ from the main setting in `column` alone, of groups trained as the main one is."""
        free = {"snapshots", "checkpoint_seconds", "updates_per_solve", "solves_in_flight", *MEMORY}
        how = lambda g: [g.about["parameters"].get(k) for k in TrainingParameters.model_fields if k not in free]
        alike = [name for name, g in self.groups.items() if how(g) == how(self.main)]
        rows, main = final_one_step(self.rows), self.main.group
        at_main = (rows[AT] == [main.solver, main.intervals, main.guidance[0]]).drop(columns=column).all(axis=1)
        return rows[rows.group.isin(alike) & at_main].drop_duplicates([*AT, "method", "seed"])

    def teacher_along(self, column: str) -> pd.DataFrame:
        """The teacher's rows of the settings in :meth:`along`."""
        return self.teacher.merge(self.along(column)[AT].drop_duplicates(), on=AT)

    def shown_samples(self) -> tuple[dict[str, Tensor], Tensor]:
        """The samples that notebook 4 kept for fig2: ({label: samples}, condition)."""
        path = self.run_dir / "samples_shown.safetensors"
        tensors, _ = read_tensors(path)
        if not {"condition", "teacher"} <= set(tensors):
            raise InputError(f"{path} does not hold the samples of notebook 4; delete it and run notebook 4 again.")
        condition = tensors.pop("condition")
        order = sorted(tensors, key=lambda k: (k != "teacher", k.startswith("Direct"), k))
        return {k: tensors[k] for k in order if " 8 step" not in k}, condition[: len(tensors["teacher"])]

    def page(self, folder: str, study: str, own: dict) -> Page:
        """A page in `folder` with the tables that figures are drawn from; `own` is the record of this notebook.

        What an earlier configuration left in the run folder has no part in it.
        """
        made_of = {"1_teacher", "3_ode_error", "4_sample_quality", *(f"2_distill-{g}" for g in self.groups)}
        paths = [path for path in sorted((self.run_dir / "provenance").glob("*.json")) if path.stem in made_of]
        page = Page(project_path(folder), study, {p.stem: read_json(p) for p in paths} | {own["notebook"]: own})
        page.csv("metrics", self.rows, self.run_dir / "ode_error.csv", self.run_dir / "quality.csv")
        page.csv("teacher_quality", self.teacher)
        page.csv("ode_error_by_time", self.by_time)
        if (self.run_dir / "solver_error.csv").exists():
            page.csv("solver_error", read(self.run_dir, "solver_error"))
        return page
