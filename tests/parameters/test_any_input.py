"""Whatever a person types into a parameters cell or a configuration runs, or is refused in one sentence first."""

import contextlib
import copy
import io
import os
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from dcm.parameters.check import shown, validate
from dcm.parameters.notebooks import EVERY_NOTEBOOK, NOTEBOOKS
from dcm.parameters.study import RegimesConfig, StudyConfig, read_config
from dcm.support.errors import InputError, TrainingError

ROOT = Path(__file__).parents[2]
CONFIGS = {p.stem: read_config(p) for p in sorted((ROOT / "workflow/config").glob("*.yaml"))}
BOOKS = {name: nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4) for name in EVERY_NOTEBOOK}

# Fixed seeds in CI: a failure there is a change of ours. With DCM_CASES and DCM_RUNS new and more cases are drawn.
CASES = int(os.environ.get("DCM_CASES", 150))  # of each of the eight kinds
every_case = settings(
    max_examples=CASES, deadline=None, derandomize="DCM_CASES" not in os.environ, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


def defaults(name: str) -> dict:
    [cell] = [c for c in BOOKS[name].cells if "parameters" in c.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, {}, values)
    return values


WORDS = ["", " ", "cm", "direct", "main", "gmm", "digits", "cifar10", "ddim", "heun", "cpu", "cuda", "linear", "huber",
         "teacher", "folder", "1e-4", "7", "..", ".", "/", "/dev/null", "README.md", "runs/x y", "runs/{x}", "a" * 300,
         "runs/\x00", "s3://bucket", "none", "null", "Direct", "\ud800", "runs/quick", "ä", "-x"]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 5, 7, 10, 16, 50, 100, 999, 1000, 1001, 2**31, 2**63, 10**30, 10**400, 0.0, -0.0, 0.5, 1.0,
           1.5, 0.95, 1e-4, 1e-320, 1e300, 2.0000001, float("nan"), float("inf"), True, False]  # fmt: skip
scalars = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(NUMBERS), st.none(), st.integers(), st.floats(), st.text(max_size=8),
    st.integers(0, 60), st.floats(0, 10), st.booleans(), st.just(range(3)), st.binary(max_size=3), st.dates(),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=2),
        st.tuples(inner, inner),
    ),
    max_leaves=5,
)
lists = st.one_of(st.lists(st.sampled_from(NUMBERS + WORDS), max_size=4), st.lists(st.integers(0, 12), max_size=5))
anything = st.one_of(values, lists)

SENTENCE = re.compile(r"^(in [^:]+: )*(?P<name>\w+) = (?P<value>.*?) (is|does|names) .*; allowed: .+\.$")
UNKNOWN = re.compile(r"^(in [^:]+: )*(?P<name>.*) is not a parameter; allowed: .+\.$")
MISSING = re.compile(r"^(in [^:]+: )*(?P<name>\w+) is missing; it must be .+\.$")


def check_refusal(error: InputError, changed: dict | None) -> None:
    """One line that names a parameter that was changed (where we know which), its value, and what is allowed."""
    text = str(error)
    note(text)
    assert text.isprintable() and len(text) < 900
    if match := MISSING.match(text):
        assert changed is None or match["name"] in changed
    elif match := UNKNOWN.match(text):
        assert changed is None or match["name"] in (*changed, *map(shown, changed))
    else:
        match = SENTENCE.match(text)
        assert match, text
        if changed and match["name"] in changed and changed[match["name"]] is not None:
            whole = changed[match["name"]]
            wholes = [whole, *whole] if isinstance(whole, list) else [whole, [whole]]  # one stands for a list of one
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                wholes.append([float(v) for v in whole])  # a list of numbers has become one of floats
            assert match["value"] in map(shown, wholes)


@st.composite
def namespaces(draw, name: str):
    """(parameters of a notebook, some of them changed; what was changed)."""
    model = EVERY_NOTEBOOK[name]
    base, changed = defaults(name), {}
    for _ in range(draw(st.integers(1, 3))):
        field = draw(st.one_of(st.sampled_from(list(model.model_fields)), st.sampled_from(["lerning_rate", "x"])))
        if draw(st.integers(0, 9)) == 0:
            base.pop(field, None)
            changed[field] = None
        else:
            base[field] = changed[field] = draw(anything)
    return base, changed


@pytest.mark.parametrize("name", EVERY_NOTEBOOK)
@given(data=st.data())
@every_case
def test_a_notebook_takes_or_refuses(name, data):
    given_values, changed = data.draw(namespaces(name))
    try:
        accepted = validate(EVERY_NOTEBOOK[name], given_values)
    except InputError as error:
        check_refusal(error, changed)
    else:
        again = accepted.model_dump()
        assert validate(EVERY_NOTEBOOK[name], again).model_dump() == again


def places(tree: dict, at: tuple = ()) -> list[tuple]:
    """Paths of all keys of a nested mapping."""
    return [p for key, value in tree.items() for p in
            [(*at, key), *(places(value, (*at, key)) if isinstance(value, dict) else [])]]  # fmt: skip


@st.composite
def configurations(draw, names):
    """(a configuration changed in a few places; what was changed)."""
    config, changed = copy.deepcopy(CONFIGS[draw(st.sampled_from(names))]), {}
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(places(config)))
        at = config
        for step in path:
            at = at[step]
        action = draw(st.integers(0, 9))
        if action == 0:
            del at[key]
            changed[key] = None
        else:
            if action == 1:
                key = draw(st.one_of(st.sampled_from(["run_dir", "group_name", "seeds", "typo"]), st.text(max_size=4)))
            at[key] = draw(anything)
            changed[key] = None if key in changed else at[key]  # two places of one name: either may be refused
    return config, changed


def taken_or_refused(model, config: dict, changed: dict):
    """`config` as `model`, or None where it is refused as it should be."""
    try:
        return validate(model, config)
    except InputError as error:
        inside = any(isinstance(v, dict) or v is None for v in changed.values())  # a part changed as a whole
        check_refusal(error, None if inside else changed)


REGIMES = [name for name in CONFIGS if name.startswith("regimes")]


@given(configurations([name for name in CONFIGS if name not in REGIMES]))
@every_case
def test_a_configuration_is_taken_or_refused(case):
    study = taken_or_refused(StudyConfig, *case)
    for name, model in NOTEBOOKS.items() if study else ():
        for group in study.groups if name == "2_distill" else [None]:
            whole = study.notebook(name, group)
            assert set(whole) == set(model.model_fields) and validate(model, whole).model_dump() == whole


@given(configurations(REGIMES))
@every_case
def test_regimes_are_taken_or_refused(case):
    regimes = taken_or_refused(RegimesConfig, *case)
    for name in regimes.studies if regimes else ():
        assert validate(StudyConfig, regimes.study(name)).study == regimes.studies[name]["study"]


def members(intervals, horizons):
    """Groups of students with these numbers of intervals and horizons."""
    guidance = st.lists(st.sampled_from([0.0, 1.0, 2.5, 1000.0]), min_size=1, max_size=2, unique=True)
    return st.fixed_dictionaries(
        {"solver": st.sampled_from(["ddim", "euler", "heun"]), "intervals": intervals, "guidance": guidance,
         "horizons": horizons, "seeds": st.sampled_from([[0], [4294967295, 3], [0, 1, 2]])}
    )  # fmt: skip


ODD = [1, 2, 5, 7, 16, 40]
small = st.fixed_dictionaries(
    {
        "teacher": st.fixed_dictionaries(
            {"samples": st.sampled_from([1, 3, 16])}
        ).flatmap(lambda d: st.just(d | {"guidance": [1.0, 0.5], "intervals": [1, 10]})),
        "training": st.fixed_dictionaries(
            {"updates": st.sampled_from(ODD), "batch": st.sampled_from([1, 3, 16])},
            optional={
                "pretrain": st.sampled_from([0, 1, 9]), "lr": st.sampled_from([1e-300, 1e-3, 1.0]),
                "lr_decay": st.sampled_from(["constant", "linear"]), "weight_decay": st.sampled_from([0.0, 1.0]),
                "ema": st.sampled_from([0.0, 0.5, 0.9999]), "updates_per_solve": st.sampled_from([1, 3, 100]),
                "width": st.sampled_from([1, 8]), "snapshots": st.sampled_from([0, 1, 100]),
                "loss": st.sampled_from(["l2", "huber"]), "max_norm": st.sampled_from([1e-300, 1.0, 1e300]),
                "checkpoint_seconds": st.sampled_from([1e-9, 60]),
            },
        ),
        "evaluation": st.fixed_dictionaries(
            {"samples": st.sampled_from([16, 33]), "steps": st.sampled_from([[1], [4, 1], [1, 2, 1000]])}
        ),
        "ode_error": st.fixed_dictionaries(
            {"start_times": st.sampled_from([1, 1000]), "start_samples": st.just(16)}
        ),
        "groups": st.fixed_dictionaries(
            {"main": members(st.sampled_from([2, 8]), st.sampled_from([["cm", "direct"], ["direct", 2, 1]]))},
            optional={"_b.c-d": members(st.sampled_from([1, 2, 8]), st.sampled_from([["cm"], ["direct"], [2, "cm"]]))},
        ),
    }
)  # fmt: skip


def run_here(name: str, parameters: dict) -> None:
    """A notebook's code, cell by cell, in this process: what papermill does, without the seconds a kernel takes."""
    namespace: dict = {"__name__": "__main__"}
    for cell in BOOKS[name].cells:
        if cell.cell_type == "code":
            if "parameters" in cell.metadata.get("tags", []):
                namespace |= parameters
            else:
                exec(compile(cell.source, name, "exec"), namespace)
    plt.close("all")


def run_small_study(folder: Path, case: dict) -> None:
    """Run what is accepted to the last figure; a loss that is not finite may stop it, in one sentence too."""
    number = len(list(folder.iterdir()))
    case |= {"study": "gmm", "run_dir": str(folder / f"{number}/run"), "results_dir": str(folder / f"{number}/results")}
    (folder / str(number)).mkdir()
    note(yaml.safe_dump(case))
    try:
        study = validate(StudyConfig, case)
    except InputError as error:
        check_refusal(error, None)
        assert not (folder / f"{number}/run").exists()
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            for name in NOTEBOOKS:
                for group in study.groups if name == "2_distill" else [None]:
                    run_here(name, study.notebook(name, group))
        except TrainingError as error:
            assert "is not finite at update" in str(error)
            return
    assert (folder / f"{number}/results/README.md").exists()


def test_what_is_accepted_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    monkeypatch.setenv("DCM_BATCH", "1")
    monkeypatch.setitem(plt.rcParams, "savefig.dpi", 50)
    runs = int(os.environ.get("DCM_RUNS", 1))
    limited = settings(every_case, max_examples=runs, phases=[Phase.explicit, Phase.generate])
    limited(given(small)(lambda case: run_small_study(tmp_path, case)))()
    finished = list(tmp_path.glob("*/results/README.md"))
    print(f"{len(finished)} of {runs} cases ran to the last figure")
    assert finished
