"""The configuration of studies whose regimes are compared."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, model_validator

from dcm.parameters import kinds as k
from dcm.parameters.check import Parameters, shown, validate, within
from dcm.parameters.notebooks import NOTEBOOKS, WithResults
from dcm.parameters.study import StudyConfig
from dcm.support.errors import InputError

RUNS = "a list of run folders of notebooks 1 to 4, or of results folders of notebook 7"


class RegimeParameters(WithResults):
    """Notebook 7, which joins several studies' runs."""

    runs: Annotated[list[k.Folder], Field(min_length=1, description=RUNS)]


class SwitchParameters(WithResults):
    """Notebook 6, which reads what notebook 5 left of several studies."""

    results: Annotated[list[k.Folder], Field(min_length=1, description="a list of results folders of notebook 5")]


class RegimesConfig(WithResults):
    """Studies whose regimes notebook 7 compares, as ``workflow/config/regimes*.yaml`` names them.

    ``studies`` has by name what a :class:`StudyConfig` has, without its folders.
    """

    studies: Annotated[
        dict[k.Name, k.Part], Field(min_length=1, description="names of studies with their configurations")
    ]

    @model_validator(mode="after")
    def _parts(self):
        self.notebook()
        for name in self.studies:
            self.study(name)
        return self

    def study(self, name: str) -> dict:
        """The configuration of one study, checked, as ``workflow/Snakefile`` takes it."""
        own = self.studies[name]
        folders = dict(run_dir=f"{self.run_dir}/{name}", results_dir=f"{self.run_dir}/{name}/results")
        common = folders | dict(device=self.device, threads=self.threads)
        with within(f"study {name}"):
            for taken in sorted(set(common) & set(own)):
                value = shown(own[taken])
                raise InputError(f"{taken} = {value} is given once for all studies; allowed: beside studies.")
            validate(StudyConfig, common | own)
        return json.loads(json.dumps(common | own))  # plain, and sharing nothing with the other studies

    def notebook(self) -> dict:
        """Parameters of notebook 7, checked, as papermill takes them."""
        common = dict(run_dir=self.run_dir, results_dir=self.results_dir, device=self.device, threads=self.threads)
        runs = dict(runs=[f"{self.run_dir}/{name}" for name in self.studies])
        return validate(RegimeParameters, common | runs).model_dump()


# Of every notebook that there is; those of a study are NOTEBOOKS.
EVERY_NOTEBOOK: dict[str, type[Parameters]] = {**NOTEBOOKS, "6_the_switch": SwitchParameters, "7_when_it_fails": RegimeParameters}
