from pathlib import Path

import pytest
import yaml

from dcm.parameters.check import validate
from dcm.parameters.kinds import STUDIES
from dcm.parameters.notebooks import EVERY_NOTEBOOK, NOTEBOOKS, DistillParameters, FigureParameters, TeacherParameters
from dcm.parameters.study import RegimesConfig, StudyConfig, read_config
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "workflow/config").glob("*.yaml"))
GOOD = dict(
    study="gmm", run_dir="runs/x", group_name="main", solver="ddim", intervals=50, guidance=[1.0], horizons=["cm", 5],
    seeds=[0], updates=10, batch=8,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intervals": 30}, "intervals = 30 does not divide the teacher's 1000 timesteps; allowed: 1, 2, 4"),
        ({"intervals": "50"}, "intervals = '50' is not possible; allowed: a whole number"),
        ({"intervals": 50.0}, "intervals = 50.0 is not possible"),
        ({"guidance": [-1.0]}, "guidance = .-1.0. is not possible; allowed: a list of numbers, at least 0"),
        ({"guidance": "x"}, "guidance = 'x' is not possible; allowed: a list"),
        ({"seeds": {"a": 1}}, "seeds = {'a': 1} is not possible; allowed: a list"),
        ({"guidance": []}, "guidance = .. is not possible"),
        ({"guidance": [float("nan")]}, "guidance = .nan. is not possible"),
        ({"guidance": [1.0, 1.0]}, "guidance .* names one value twice"),
        ({"horizons": [51]}, "horizon = 51 is not possible with intervals = 50; allowed: 'cm', 'direct'"),
        ({"horizons": ["cm", 1]}, "horizons .* names one value twice"),
        ({"solver": "rk4"}, "solver = 'rk4' is not possible; allowed: one of ddim, euler, heun"),
        ({"lr": 0.0}, "lr = 0.0 is not possible; allowed: a number above 0"),
        ({"updates": True}, "updates = True is not possible"),
        ({"group_name": "../x"}, "group_name = '../x' is not possible; allowed: a name of letters"),
        ({"study": "mnist"}, "study = 'mnist' is not possible; allowed: one of gmm"),
        ({"learning_rate": 1.0}, "learning_rate is not a parameter; allowed: .*lr"),
    ],
)
def test_bad_values_get_one_sentence(change, message):
    with pytest.raises(InputError, match=message) as error:
        validate(DistillParameters, GOOD | change)
    assert "\n" not in str(error.value)


def test_a_missing_value_is_named():
    with pytest.raises(InputError, match="updates is missing; it must be a whole number, at least 1"):
        validate(DistillParameters, {k: v for k, v in GOOD.items() if k != "updates"})


@pytest.mark.parametrize("values", [dict(guidance=3.0), dict(horizons="cm"), dict(seeds=7), dict(horizons=5)])
def test_one_value_is_a_list_of_one(values):
    [(name, value)] = values.items()
    assert getattr(validate(DistillParameters, GOOD | values), name) == [value]


TEACHER = dict(run_dir="runs/x", guidance=1.0, intervals=10)
TRAINING = dict(GOOD, pretrain=1)
IMAGES = dict(TRAINING, study="digits")


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (TeacherParameters, dict(TEACHER, study="digits", model="x"), "model = 'x' .* study digits.*; allowed: 'stabil"),
        (TeacherParameters, dict(TEACHER, study="cifar10", data="folder", model="x"), "model = 'x' .* study cifar10"),
        (TeacherParameters, dict(TEACHER, study="gmm", model="x"), "model = 'x' is not possible for the study gmm"),
        (TeacherParameters, dict(TEACHER, study="gmm", updates=3), "updates = 3 .* gmm, which does not use it; allowed: 0"),
        (TeacherParameters, dict(TEACHER, study="gmm", seed=3), "seed = 3 is not possible for the study gmm"),
        (TeacherParameters, dict(TEACHER, study="gmm", data="folder"), "data = 'folder' is not possible for the study gmm"),
        (TeacherParameters, dict(TEACHER, study="digits", dimension=3), "dimension = 3 .* study digits.*; allowed: 2"),
        (TeacherParameters, dict(TEACHER, study="digits", data_dir="x"), "data_dir = 'x' .* digits.*; allowed: 'data'"),
        (TeacherParameters, dict(TEACHER, study="digits", download=True), "download = True .* digits.*; allowed: False"),
        (TeacherParameters, dict(TEACHER, study="sdxl", data="folder", lr=0.1), "lr = 0.1 .* sdxl.*; allowed: 0.001"),
        (TeacherParameters, dict(TEACHER, study="sdxl"), "data = 'builtin' is not possible .*sdxl; allowed: folder"),
        (DistillParameters, TRAINING | dict(lora_rank=2), "lora_rank = 2 is not possible for the study gmm"),
        (DistillParameters, TRAINING | dict(microbatch=2), "microbatch = 2 is not possible for the study gmm"),
        (DistillParameters, TRAINING | dict(compiled=True), "compiled = True is not possible for the study gmm"),
        (DistillParameters, IMAGES | dict(width=32), "width = 32 is not possible for the study digits, .*allowed: 64"),
        (DistillParameters, TRAINING | dict(study="sdxl"), "pretrain = 1 is not possible for the study sdxl"),
    ],
)  # fmt: skip
def test_what_a_study_does_not_use_is_refused(model, values, message):
    with pytest.raises(InputError, match=message):
        validate(model, values)


def test_what_a_study_does_not_use_may_keep_its_default():
    for name, used in STUDIES.items():
        defaults = {n: f.default for n, f in TeacherParameters.model_fields.items() if not f.is_required()}
        p = validate(TeacherParameters, TEACHER | defaults | {"study": name, "data": used.data[-1]})
        assert p.model == defaults["model"]
        assert used.teacher <= set(defaults) and used.training <= set(DistillParameters.model_fields)


@pytest.mark.parametrize(
    "folder", ["/proc/nope", "dcm", "tests/x", ".git/a", "notebooks", "weights/../docs", "/dev/null/x", "results/../dcm"]
)
def test_folders_that_cannot_be_or_are_not_to_be_written(folder):
    for name in ("run_dir", "results_dir"):
        values = dict(study="gmm", run_dir="runs/x", results_dir="runs/x/results") | {name: folder}
        with pytest.raises(InputError, match=f"{name} = '.*' is not possible; allowed: the path of a folder"):
            validate(FigureParameters, values)


def test_folders_that_may_be_written(tmp_path):
    for folder in ("results/local/gmm", "runs/gmm/results", "results/gmm", str(tmp_path / "a/b")):
        validate(FigureParameters, dict(study="gmm", run_dir="runs/x", results_dir=folder))
    assert not list(tmp_path.iterdir()), "trying leaves nothing"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_is_valid(path):
    if path.stem.startswith("regimes"):
        config = validate(RegimesConfig, read_config(path))
        for name in config.studies:
            validate(StudyConfig, config.study(name))
        return
    config = validate(StudyConfig, read_config(path))
    assert [*config.groups] == [*yaml.safe_load(path.read_text())["groups"]]


def test_a_config_is_checked_to_its_leaves():
    values = yaml.safe_load((ROOT / "workflow/config/smoke.yaml").read_text())
    for path, bad, message in [
        (("training", "lr"), "fast", "lr = 'fast' is not possible"),
        (("groups", "main", "intervals"), 7, "intervals = 7 does not divide"),
        (("evaluation", "steps"), [0], "steps = .0. is not possible"),
        (("teacher", "epochs"), 3, "epochs is not a parameter"),
        (("groups", "main", "horizons"), ["cm"], "horizons = .'cm'. is not possible for the main group main"),
        (("evaluation", "steps"), [2], "in evaluation and ode_error: steps = .2. is not possible; .* 1 among them"),
        (("teacher", "run_dir"), "x", "in teacher: run_dir is not a parameter"),
        (("results_dir",), "runs/smoke/gmm", "results_dir = 'runs/smoke/gmm' is not possible; allowed: a folder other"),
        (("results_dir",), ".", "results_dir = '.' is not possible; allowed: the path of a folder that can be written"),
        (("run_dir",), "README.md/x", "run_dir = 'README.md/x' is not possible"),
        (("training", "lr"), "1e-3", "YAML takes it for text: write 1.0e-4, not 1e-4"),
        (("main_group",), "mian", "main_group = 'mian' is not a group; allowed: guidance, heun, main"),
        (("studdy",), 1, "studdy is not a parameter"),
    ]:
        broken = yaml.safe_load(yaml.safe_dump(values))
        at = broken
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = bad
        with pytest.raises(InputError, match=message):
            validate(StudyConfig, broken)


def test_a_config_has_what_its_base_has_but_for_groups(tmp_path):
    (tmp_path / "own").mkdir()
    write = lambda name, **values: (tmp_path / name).write_text(yaml.safe_dump(values))
    write("a.yaml", study="gmm", threads=2, training=dict(lr=1, batch=2), groups=dict(main=1, other=2))
    write("b.yaml", base="a.yaml", threads=3, training=dict(lr=4))
    write("own/c.yaml", base="../b.yaml", training=dict(updates=5), groups=dict(main=6))
    found = read_config(tmp_path / "own/c.yaml")
    assert found == dict(study="gmm", threads=3, training=dict(lr=4, batch=2, updates=5), groups=dict(main=6))
    write("a.yaml", base="own/c.yaml")
    for base in ("a.yaml", "b.yaml", 7):
        write("b.yaml", base=base)
        with pytest.raises(InputError, match="base = .* is not possible; allowed: a file of another configuration"):
            read_config(tmp_path / "b.yaml")


def test_an_unreadable_config_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("{")
    with pytest.raises(InputError, match="a.yaml cannot be read"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(InputError, match="a.yaml cannot be read"):
        read_config(tmp_path / "b.yaml")
    assert set(EVERY_NOTEBOOK) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} > set(NOTEBOOKS)
