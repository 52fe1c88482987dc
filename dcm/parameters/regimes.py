"""The configuration of studies whose regimes are compared."""

from __future__ import annotations

import json
from typing import Annotated

from pydantic import Field, model_validator

from dcm.parameters import kinds as k
from dcm.parameters.check import Parameters, shown, validate
from dcm.parameters.notebooks import NOTEBOOKS, check_apart
from dcm.parameters.study import StudyConfig
from dcm.support.errors import InputError


class RegimeParameters(Parameters):
    """Notebook 6, which joins several studies' runs."""

    runs: Annotated[
        list[k.Folder],
        Field(
            min_length=1, description="a list of run folders of notebooks 1 to 4, or of results folders of notebook 6"
        ),
    ]
    run_dir: k.NewFolder
    results_dir: k.NewFolder
    map_samples: k.Samples = 64
    probes: Annotated[int, k.between(2, 256)] = 8
    bootstrap: k.Bootstrap = 10000
    confidence: k.Confidence = 0.95
    device: k.Device = "auto"
    threads: k.Threads = 1

    @model_validator(mode="after")
    def _apart(self):
        return check_apart(self)


class RegimesConfig(Parameters):
    """Studies whose regimes notebook 6 compares, as ``workflow/config/regimes*.yaml`` names them.

    ``studies`` has by name what a :class:`StudyConfig` has, without its folders; ``figures`` is notebook 6's.
    """

    run_dir: k.NewFolder
    results_dir: k.NewFolder
    device: k.Device = "auto"
    threads: k.Threads = 1
    studies: Annotated[
        dict[k.Name, k.Part], Field(min_length=1, description="names of studies with their configurations")
    ]
    figures: k.Part = {}

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
        taken = sorted(set(common) & set(own))
        if taken:
            value = shown(own[taken[0]])
            raise InputError(
                f"in study {name}: {taken[0]} = {value} is given once for all studies; allowed: beside studies."
            )
        try:
            validate(StudyConfig, common | own)
        except InputError as error:
            raise InputError(f"in study {name}: {error}") from None
        return json.loads(json.dumps(common | own))  # plain, and sharing nothing with the other studies

    def notebook(self) -> dict:
        """Parameters of notebook 6, checked, as papermill takes them."""
        common = dict(run_dir=self.run_dir, results_dir=self.results_dir, device=self.device, threads=self.threads)
        runs = dict(runs=[f"{self.run_dir}/{name}" for name in self.studies])
        try:
            return validate(RegimeParameters, common | runs | self.figures).model_dump()
        except InputError as error:
            raise InputError(f"in figures: {error}") from None


# Of every notebook that there is; those of a study are NOTEBOOKS.
EVERY_NOTEBOOK: dict[str, type[Parameters]] = NOTEBOOKS | {"6_when_it_fails": RegimeParameters}
