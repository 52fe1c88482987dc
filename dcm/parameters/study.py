"""The configuration of a whole study, and of several whose regimes are compared."""

import json
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, model_validator

from dcm.parameters import kinds as k
from dcm.parameters.check import shown, validate, within
from dcm.parameters.notebooks import NOTEBOOKS, Common, RegimeParameters, WithResults, check_ends, check_guidance
from dcm.support.errors import InputError


class StudyConfig(Common, WithResults):
    """A whole study, as ``workflow/config/*.yaml`` names it: parameters by notebook, and the groups to distil."""

    main_group: k.Name = "main"
    teacher: k.Part
    training: k.Part
    groups: Annotated[dict[k.Name, k.Part], Field(min_length=1, description="names of groups with their parameters")]
    evaluation: k.Part
    ode_error: k.Part = {}

    @model_validator(mode="after")
    def _parts(self):
        if self.main_group not in self.groups:
            raise InputError(f"main_group = {self.main_group!r} is not a group; allowed: {', '.join(self.groups)}.")
        for notebook in sorted(NOTEBOOKS, key="2_distill".__eq__):  # last, since it takes from evaluation, too
            for name in self.groups if notebook == "2_distill" else [None]:
                self.notebook(notebook, name)
        check_ends(self.main_group, self.notebook("2_distill", self.main_group))
        if self.study == "diffusers":
            for name in self.groups:
                with within(f"group {name}"):
                    check_guidance(self.notebook("2_distill", name)["guidance"], self.teacher.get("null_class", False))
        return self

    def notebook(self, notebook: str, group: str | None = None) -> dict:
        """All parameters of one notebook (of one group, for notebook 2), checked, as papermill takes them.

        What is not named has the default of the notebook's model; those in its cell are for those who run it by hand.
        """
        model, common = NOTEBOOKS[notebook], self.model_dump(include=set(Common.model_fields))
        main, groups, sampled = {"main_group": self.main_group}, {"groups": list(self.groups)}, self.evaluation
        of_group = {
            "group_name": group, "samples": sampled.get("samples"), "evaluation_seed": sampled.get("seed", 0),
            "steps": sampled.get("steps") if group == self.main_group else [1],
        }  # fmt: skip
        own, where, named = {
            "1_teacher": ({}, "teacher", self.teacher),
            "2_distill": (of_group, f"group {group}", self.training | self.groups.get(group or "", {})),
            "3_ode_error": (main | groups, "evaluation and ode_error", sampled | self.ode_error),
            "4_sample_quality": (main | groups | {"processes": self.training.get("processes", 1)}, "evaluation", sampled),
            "5_figures": (main | {"results_dir": self.results_dir}, "figures", {}),
        }[notebook]
        once = {"study", "run_dir"} | set(own)  # named for the whole study
        with within(where):
            if taken := once & set(named):
                allowed = ", ".join(n for n in model.model_fields if n not in once)
                raise InputError(f"{min(taken)} is not a parameter; allowed: {allowed}.")
            return validate(model, common | own | named).model_dump()


class RegimesConfig(WithResults):
    """Studies whose regimes notebook 7 compares: by name what a :class:`StudyConfig` has, without its folders."""

    studies: Annotated[dict[k.Name, k.Part], Field(min_length=1, description="names of studies with their configurations")]

    @model_validator(mode="after")
    def _parts(self):
        self.notebook()
        for name in self.studies:
            self.study(name)
        return self

    def study(self, name: str) -> dict:
        """The configuration of one study, checked, as ``workflow/Snakefile`` takes it."""
        own, home = self.studies[name], f"{self.run_dir}/{name}"
        common = dict(run_dir=home, results_dir=f"{home}/results", device=self.device, threads=self.threads)
        with within(f"study {name}"):
            for taken in sorted(set(common) & set(own)):
                value = shown(own[taken])
                raise InputError(f"{taken} = {value} is given once for all studies; allowed: beside studies.")
            validate(StudyConfig, common | own)
        return json.loads(json.dumps(common | own))  # plain, and sharing nothing with the other studies

    def notebook(self) -> dict:
        """Parameters of notebook 7, checked, as papermill takes them."""
        runs = {"runs": [f"{self.run_dir}/{name}" for name in self.studies]}
        return validate(RegimeParameters, self.model_dump(exclude={"studies"}) | runs).model_dump()


def read_config(path: str | Path, above: tuple[Path, ...] = ()) -> dict:
    """What a YAML file says; raises :class:`InputError`.

    ``base`` names another file, from the folder of this one, that has what this one leaves out: parts are joined name by
    name, but for ``groups``, which are those of one file. `above` : the files that led here.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"the configuration {path} cannot be read: {str(error).splitlines()[0]}.") from None
    if not isinstance(values, dict):
        raise InputError(f"the configuration {path} must be a mapping of names to values.")
    if (base := values.pop("base", None)) is None:
        return values
    led = (*above, Path(path).resolve())
    if not isinstance(base, str) or (Path(path).parent / base).resolve() in led:
        raise InputError(f"base = {shown(base)} of {path} is not possible; allowed: a file of another configuration.")
    below = read_config(Path(path).parent / base, led)
    joined = {k: below[k] | v for k, v in values.items() if k != "groups" and isinstance(v, dict) and isinstance(below.get(k), dict)}
    return below | values | joined
