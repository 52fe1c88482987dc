"""The README's numbers are those of the committed results, and its links lead somewhere."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dcm.parameters.check import validate
from dcm.parameters.notebooks import NOTEBOOKS
from dcm.parameters.regimes import EVERY_NOTEBOOK, RegimesConfig
from dcm.parameters.study import StudyConfig, load_config
from dcm.report import provenance, readme

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
STUDIES = ("gmm", "digits", "cifar10")


def without_dry_run(parameters: dict) -> dict:
    """A parameter that notebook 1 once had; nothing that was kept ran with it."""
    assert parameters.pop("dry_run", False) is False
    return parameters


def test_findings_are_the_committed_results():
    assert readme.filled(TEXT) == TEXT, "run python -m dcm.readme"
    for name in (*(f"results:{study}" for study in STUDIES), "summary", "regimes_all", "sdxl dry run"):
        assert TEXT.count(f"<!-- {name} -->") == 1, name
    assert "ODE error" in readme.block("gmm")


def test_summary_states_the_verdict_tables():
    """Ratio and verdict of each study stand in its own verdicts.csv; the counts leave out what too few seeds made."""
    lines = readme.summary().splitlines()[2:]
    assert len(lines) == len(STUDIES)
    for study, line in zip(STUDIES, lines):
        claims = pd.read_csv(ROOT / f"results/{study}/verdicts.csv")
        main = claims[(claims.group == "main") & (claims.claim == "C1")].iloc[0]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2] == f"{main.value:.3g} [{main.low:.3g}, {main.high:.3g}]" and cells[3] == f"**{main.verdict}**"
        judged = claims[(claims.claim == "C1") & (claims.seeds >= 3)]
        assert sum(int(part.split()[0]) for part in cells[4].split(", ")) == len(judged)


def test_links_lead_somewhere():
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", TEXT)]
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert len(links) > 15 and missing == []


def test_committed_results_are_complete():
    """Every figure and table of every study, from a committed configuration."""
    for study in STUDIES:
        folder = ROOT / "results" / study
        alone = study == "cifar10"  # it alone trains both models alone, too: equal budgets
        names = [f"fig{i}.{kind}" for i in range(1, 12 if alone else 11) for kind in ("png", "pdf")]
        tables = ["tab1", "verdicts", "correlations", *(["tab2"] if alone else [])]
        names += [f"{t}.{kind}" for t in tables for kind in ("csv", "md")]
        names += ["metrics.csv", "provenance.json", "README.md", "notebooks/5_figures.html"]
        assert [n for n in names if not (folder / n).exists()] == []


def test_committed_figures_are_not_stale():
    """Every figure says where it came from, and the tables beside it are still those."""
    for study in STUDIES:
        if "parameters" not in json.loads((ROOT / f"results/{study}/provenance.json").read_text()):
            pytest.skip("these results were drawn before figures carried their provenance")
        for path in (ROOT / f"results/{study}").glob("fig*.p*"):
            assert provenance.stale(path) == [], path


def test_committed_results_come_from_the_committed_configuration():
    """Every notebook ran with the parameters that the configuration has today, to the last default."""
    for study in STUDIES:
        config = load_config(ROOT / f"workflow/config/{study}.yaml")
        ran = json.loads((ROOT / f"results/{study}/provenance.json").read_text())["notebooks"]
        expected = {name: config.notebook(name) for name in NOTEBOOKS if name != "2_distill"}
        expected |= {f"2_distill-{g}": config.notebook("2_distill", g) for g in config.groups}
        assert set(ran) == set(expected)
        for name, values in expected.items():
            # A parameter that came later stood at its default.
            assert validate(NOTEBOOKS[name.split("-")[0]], without_dry_run(ran[name]["parameters"])).model_dump(mode="json") == values, (
                name
            )


def assert_drawn(folder: Path) -> None:
    """All of notebook 6's figures are there and not stale, those of measures once a study, and the page that ran."""
    figures = sorted(folder.glob("*.p*"))
    studies = set(pd.read_csv(folder / "verdicts.csv").family)
    shown = list(folder.glob("samples_*.safetensors"))
    assert len(figures) == 2 * (8 + len(studies) + len(shown)) and [f for f in figures if provenance.stale(f)] == []
    assert (folder / "notebooks/6_when_it_fails.html").exists()


@pytest.mark.parametrize("regimes", ["regimes", "regimes_cifar10"])
def test_the_regimes_are_the_committed_results(regimes):
    """Every figure of notebook 6, drawn from the tables beside it, from the committed configuration."""
    folder = ROOT / "results" / regimes
    config = validate(RegimesConfig, yaml.safe_load((ROOT / f"workflow/config/{regimes}.yaml").read_text()))
    assert_drawn(folder)
    ran = json.loads((folder / "provenance.json").read_text())["notebooks"]

    def now(name: str) -> dict:
        """A notebook's parameters as today's code has them; a first form of lora_rank, never above 0 here, is gone."""
        parameters = ran.pop(name)["parameters"]
        assert parameters.pop("rank", 0) == 0
        without_dry_run(parameters)
        model = EVERY_NOTEBOOK[name.split("/")[-1].split("-")[0]]
        return validate(model, parameters).model_dump(mode="json")

    # Notebook 6 may have been run again on its own results.
    assert now("6_when_it_fails") | {"runs": config.notebook()["runs"]} == config.notebook()
    for name in config.studies:
        study = validate(StudyConfig, config.study(name))
        expected = {f"{name}/{n}": study.notebook(n) for n in ("1_teacher", "3_ode_error", "4_sample_quality")}
        expected |= {f"{name}/2_distill-{g}": study.notebook("2_distill", g) for g in study.groups}
        for notebook, values in expected.items():
            found = now(notebook)
            for parameters in (found, values):
                parameters.get("groups", []).sort()  # their order changes nothing
            assert found == values, notebook
    assert ran == {}


def test_all_regimes_are_those_of_both_results():
    """``make regimes-all``: rows and verdicts of both folders, and the records of every notebook behind them."""
    parts, whole = [ROOT / "results" / name for name in ("regimes", "regimes_cifar10")], ROOT / "results/regimes_all"
    assert_drawn(whole)
    assert (whole / "summary.md").read_text().strip() in TEXT
    for name in ("metrics", "verdicts"):
        rows = pd.concat([pd.read_csv(folder / f"{name}.csv") for folder in parts], ignore_index=True)
        made = pd.read_csv(whole / f"{name}.csv")
        pd.testing.assert_frame_equal(made[sorted(made)], rows[sorted(rows)], rtol=1e-4)
    records = [json.loads((folder / "provenance.json").read_text())["notebooks"] for folder in (*parts, whole)]
    own = [{name: r["parameters"] for name, r in each.items() if "/" in name} for each in records]
    assert own[0] | own[1] == own[2]
