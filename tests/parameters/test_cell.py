"""The parameters cell, run again and again in a real IPython shell, as in JupyterLab."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from dcm.parameters.cell import check
from dcm.parameters.notebooks import DistillParameters
from dcm.support.errors import InputError

CELL = """# Parameters: papermill replaces these
study = "gmm"
run_dir = "runs/x"  # a comment
group_name = "main"
solver = "ddim"
intervals = 50
guidance = [1.0, 2.0]
horizons = ["cm", 5]
seeds = [0, 1]
updates = 10
batch = 8
lr = 1 / 1000
"""
START = "from dcm.parameters.cell import check\np = check(DistillParameters, globals())"
BODY = "import os\nstudy, notebook = object(), os\nwdith = 3\nsamples = [n for n in range(3)]"


@pytest.fixture
def run():
    """Runs cells in one session; returns the parameters as the last cell checked them, or raises its error."""
    shell = InteractiveShell(config=Config(HistoryManager={"hist_file": ":memory:"}))
    shell.push({"DistillParameters": DistillParameters})
    shell.showtraceback = lambda *a, **k: None

    def run(*cells: str) -> DistillParameters:
        for cell in cells:
            result = shell.run_cell(cell, store_history=True)
        result.raise_error()
        return shell.user_ns["p"]

    return run


def test_a_typo_is_refused_until_its_line_is_deleted(run):
    with pytest.raises(InputError, match="updats is not a parameter; allowed: updates, batch"):
        run(CELL + "updats = 800\n", START)
    assert run(CELL, START).updates == 10


def test_a_typo_after_a_good_run_is_refused(run):
    assert run(CELL, START, BODY).lr == 1e-3
    with pytest.raises(InputError, match="updats is not a parameter"):
        run(CELL.replace("updates", "updats"), START)
    assert run(CELL.replace("updates = 10", "updates = 20"), START).updates == 20


def test_a_deleted_line_is_a_default_again_or_missing(run):
    assert run(CELL + "width = 16\n", START).width == 16
    assert run(CELL, START).width == 64
    with pytest.raises(InputError, match="batch is missing; it must be a whole number"):
        run(CELL.replace("batch = 8", ""), START)


def test_variables_of_other_cells_are_none_of_its_business(run):
    """Nor does it matter that later cells use a parameter's name, when the checking cell alone is run again."""
    run("wdith = 5", CELL, START, BODY)
    assert run(START).study == "gmm"
    assert run("mine = 3", START).width == 64


@pytest.mark.parametrize("line", ["_samples = 5", 'notebook = "foo"', "updats = 800", "updats: int = 800"])
def test_papermills_cell_is_judged_too(run, line):
    """Also a name that starts with _, and one that an import in a later cell takes."""
    with pytest.raises(InputError, match=f"{line.split(' ')[0].strip(':')} is not a parameter"):
        run(CELL, f"# Parameters\n{line}\n", "import os as notebook\n" + START)


def test_papermills_values_replace_the_cells(run):
    assert run(CELL, "# Parameters\nupdates = 7\nguidance = 3.0\n", START).model_dump(
        include={"updates", "guidance", "batch"}
    ) == {"updates": 7, "guidance": [3.0], "batch": 8}
    every = CELL.replace("# Parameters: papermill replaces these", "# Parameters").replace("lr = 1 / 1000", "")
    p = run(CELL + "width = 16\n", every, START)
    assert (p.lr, p.width) == (1e-3, 16), "what papermill does not name is the parameters cell's"


def test_a_cell_that_was_split_or_overridden_counts_whole(run):
    """JupyterLab's split, and a line run in a cell of its own."""
    first, second = CELL[: CELL.index("updates")], CELL[CELL.index("updates") :]
    with pytest.raises(InputError, match="wdith is not a parameter"):
        run(first, second.replace("lr = 1 / 1000", "wdith = 3"), START)
    assert run(first, second.replace("lr = 1 / 1000", "lr = 0.5"), START).lr == 0.5
    assert run("updates = 77", START).updates == 77
    assert run(CELL, START).updates == 10


def test_without_its_cell_a_session_is_told_to_run_it(run):
    with pytest.raises(InputError, match="the parameters cell has not been run in this session"):
        run("x = 1", START)
    with pytest.raises(InputError, match="intervals = 30 does not divide"):
        run("x = (", CELL.replace("= 50", "= 30"), START)


def test_in_a_session_without_history_every_plain_value_counts():
    """As nbval runs cells: `In` stays empty."""
    shell = InteractiveShell(config=Config(HistoryManager={"hist_file": ":memory:"}))
    shell.push({"DistillParameters": DistillParameters})
    shell.run_cell(CELL)
    shell.run_cell(START).raise_error()
    assert shell.user_ns["p"].updates == 10
    shell.showtraceback = lambda *a, **k: None
    shell.run_cell("Updates = 3")
    with pytest.raises(InputError, match="Updates is not a parameter"):
        shell.run_cell("from dcm.parameters.cell import check\ncheck(DistillParameters, globals())").raise_error()


def test_outside_of_ipython_every_plain_value_counts():
    values: dict = {"__name__": "__main__", "np": pytest}
    exec(CELL, values)
    assert check(DistillParameters, values).updates == 10
    for name in ("wdith", "_samples"):
        with pytest.raises(InputError, match=f"{name} is not a parameter"):
            check(DistillParameters, values | {name: 3})
