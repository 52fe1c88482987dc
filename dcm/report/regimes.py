"""What notebook 7 reports: the runs that it compares, joined and judged by regime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from dcm.analysis import runs
from dcm.analysis.compare import INTERVALS
from dcm.analysis.runs import Run
from dcm.report.page import Page
from dcm.report.sentences import span
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_json


@dataclass
class Regimes:
    """Runs whose regimes are compared.

    Attributes
    ----------
    rows : every student of every regime. claims : :meth:`dcm.analysis.runs.Run.claims` of all runs.
    """

    runs: list[Run]
    rows: pd.DataFrame
    claims: pd.DataFrame

    @classmethod
    def load(cls, folders: Sequence[str], device) -> Regimes:
        """Those of all `folders`; raises :class:`InputError` where two have one name or there is nothing to compare."""
        found = [run for folder in folders for run in runs.load_runs(folder, device)]
        if len({r.name for r in found}) < len(found):
            raise InputError("two of the runs have folders of one name; give each its own.")
        claims = pd.concat([r.claims() for r in found], ignore_index=True)
        if not len(claims):
            raise InputError("no group of the runs has both a CM and a Direct CM; there is nothing to compare.")
        rows = pd.concat([r.rows.assign(family=r.family) for r in found], ignore_index=True)
        return cls(found, rows, claims)

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
        return f"{span(self.claims.seeds)} seeds, {span(updates)} updates; {INTERVALS}."

    def page(self, folder: str, own: dict) -> Page:
        """A page in `folder` with the rows and the verdicts, which figures are drawn from; `own` is this notebook's record."""
        records = {f"{run.name}/{name}": record for run in self.runs for name, record in run.records.items()}
        page = Page(project_path(folder), "regimes", records | {own["notebook"]: own})
        page.csv("metrics", self.rows)
        page.csv("verdicts", self.claims)
        write_json(page.folder / "studies.json", {run.name: asdict(run.facts) for run in self.runs})
        return page
