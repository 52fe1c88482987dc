"""Configurations of studies whose regimes are compared."""

from pathlib import Path

import pytest
import yaml

from dcm.parameters.check import validate
from dcm.parameters.study import RegimesConfig
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["regimes", "regimes_cifar10"])
def test_the_configurations_are_possible(name):
    config = validate(RegimesConfig, yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text()))
    for study in config.studies:
        groups = config.study(study)["groups"]
        assert "main" in groups
        assert name != "regimes" or all(len(g["seeds"]) >= 5 for g in groups.values())
    assert config.notebook()["runs"] == [f"{config.run_dir}/{study}" for study in config.studies]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"studies": {}}, "studies = {} is not possible"),
        (
            {"studies": {"a": {"study": "gmm", "run_dir": "x"}}},
            "in study a: run_dir = 'x' is given once for all studies; allowed: beside studies",
        ),
        ({"studies": {"a": {"study": "gmm"}}}, "in study a: teacher is missing"),
        ({"figures": {}}, "figures is not a parameter; allowed: .*studies"),
    ],
)
def test_an_impossible_configuration_is_refused(change, message):
    values = yaml.safe_load((ROOT / "workflow/config/regimes.yaml").read_text())
    with pytest.raises(InputError, match=message):
        validate(RegimesConfig, values | change)
