"""The notebooks themselves: parameters, stored outputs for nbval, and what a person sees for bad input."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from dcm.parameters.notebooks import EVERY_NOTEBOOK as NOTEBOOKS

ROOT = Path(__file__).parents[2]
BOOKS = {name: nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4) for name in NOTEBOOKS}


def tagged(book, tag):
    return [cell for cell in book.cells if tag in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_parameters_cell_names_every_parameter(name):
    [cell] = tagged(BOOKS[name], "parameters")
    assigned = [node.targets[0].id for node in ast.parse(cell.source).body]
    assert sorted(assigned) == sorted(NOTEBOOKS[name].model_fields)
    lines = [line for line in cell.source.splitlines() if not line.startswith("#")]
    assert all("  # " in line for line in lines), "every parameter has a comment"
    first = cell.source.split("# advanced\n")[0].splitlines()[1:]
    assert len(first) < len(assigned) and len(first) <= 8, "those that matter, and the rest under advanced"
    values = {}
    exec(cell.source, values)
    values.pop("__builtins__")
    NOTEBOOKS[name](**values)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_nbval_has_something_to_compare(name):
    """nbval passes a notebook without stored outputs, so their presence is tested here."""
    checked = tagged(BOOKS[name], "nbval-check-output")
    assert checked
    for cell in checked:
        text = "".join(o.get("text", "") or str(o.get("data", {}).get("text/plain", "")) for o in cell.outputs)
        assert cell.execution_count and len(text.strip()) > 20
        assert any(character.isalnum() for character in text)
    code = [cell for cell in BOOKS[name].cells if cell.cell_type == "code"]
    assert [c.execution_count for c in code] == list(range(1, len(code) + 1)), "run from top to bottom"
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]


# Cells that draw: as many figures are stored at the least, of a run with three guidance scales.
FIGURES = {"1_teacher": 3, "2_distill": 3, "3_ode_error": 1, "4_sample_quality": 1, "5_figures": 8, "6_the_switch": 3, "7_when_it_fails": 1}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_figures_are_stored(name):
    """GitHub shows what is stored: every figure as an image, in a file that it still renders."""
    outputs = [o for c in BOOKS[name].cells if c.cell_type == "code" for o in c.outputs]
    images = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert len(images) >= FIGURES[name] and all(len(image) > 10_000 for image in images)
    assert (ROOT / f"notebooks/{name}.ipynb").stat().st_size < 1.5e6


@pytest.mark.parametrize("name", list(NOTEBOOKS)[:4])
def test_a_notebook_ends_with_a_takeaway_and_the_files_that_it_wrote(name):
    *_, heading, takeaway, finish = BOOKS[name].cells
    [said] = [o.data["text/markdown"] for o in takeaway.outputs if "text/markdown" in o.get("data", {})]
    assert heading.source == "## Takeaway" and re.search(r"\d", said) and "nan" not in said
    [written] = [o.text for o in finish.outputs if o.output_type == "stream"]
    assert written.startswith("Files written:\n  runs/quick/gmm/") and f"provenance/{name}" in written


def test_no_host_or_user_path_is_stored():
    for name in NOTEBOOKS:
        text = (ROOT / f"notebooks/{name}.ipynb").read_text()
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text


def test_bad_parameters_stop_a_notebook_with_one_sentence(tmp_path):
    out = tmp_path / "out.ipynb"
    values = {"intervals": 30, "run_dir": str(tmp_path / "run")}
    with pytest.raises(PapermillExecutionError, match="intervals = 30 does not divide the teacher's 1000 timesteps"):
        papermill.execute_notebook(
            ROOT / "notebooks/2_distill.ipynb", out, values, kernel_name="python3", progress_bar=False
        )
    book = nbformat.read(out, as_version=4)
    [error] = [o for c in book.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len(error.traceback) == 1 and "\n" not in error.traceback[0] and "allowed: 1, 2, 4" in error.traceback[0]
    assert not (tmp_path / "run").exists(), "nothing was started"


def test_nbval_sees_a_changed_coefficient(tmp_path):
    """Heun's corrector off by one percent, in a copy of dcm/: the checked cell of notebook 1 fails, no other does."""
    shutil.copytree(ROOT / "dcm", tmp_path / "dcm", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/1_teacher.ipynb", tmp_path / "notebooks")
    solvers = tmp_path / "dcm/solvers.py"
    changed, count = re.subn(
        r"(def heun_step.*?return .*?/ 2)\b", r"\1.02", solvers.read_text(), count=1, flags=re.DOTALL
    )
    assert count == 1, "Heun's step is written otherwise now: change another coefficient here"
    solvers.write_text(changed)
    nbval = ["pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "notebooks/1_teacher.ipynb"]
    run = subprocess.run(
        [sys.executable, "-m", *nbval], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    code = [cell for cell in BOOKS["1_teacher"].cells if cell.cell_type == "code"]
    [checked] = [i for i, cell in enumerate(code) if "nbval-check-output" in cell.metadata.get("tags", [])]
    failed = re.findall(r"^FAILED notebooks/1_teacher.ipynb::Cell (\d+)", run.stdout, re.MULTILINE)
    assert run.returncode == 1 and failed == [str(checked)], run.stdout
    assert (tmp_path / "runs/quick/gmm/solver_error.csv").exists(), "the copy is what ran"
