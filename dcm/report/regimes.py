"""What notebook 7 reports: the runs that it compares, joined and judged by regime."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dcm.analysis import runs
from dcm.analysis.runs import REGIME, Results
from dcm.report.page import Page
from dcm.report.sentences import counted
from dcm.report.switch import by_role, c1, said
from dcm.support.errors import InputError
from dcm.support.files import project_path, write_json


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
        lines = []
        for (run, regime), rows in self.claims.groupby(["run", "regime"], sort=False):
            line = {"run": run, "regime": regime, "seeds": rows.seeds.max(), "CM": rows.cm.iloc[0]}
            lines.append(line | by_role(rows) | {"C2 over encoders": said(rows)})
        return pd.DataFrame(lines)

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
