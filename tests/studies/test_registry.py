"""One run folder, one study: whatever is in it already decides what may go on in it."""

import pytest
import torch

from dcm import notebook
from dcm.parameters.check import validate
from dcm.parameters.kinds import STUDIES as USED
from dcm.parameters.notebooks import DistillParameters
from dcm.studies.registry import STUDIES, load_study, prepare_teacher
from dcm.support.errors import InputError
from dcm.training.run import train_group

CPU = torch.device("cpu")
GROUP = dict(group_name="main", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0], updates=2,
             batch=4, width=8)  # fmt: skip
MEASURED = dict(samples=16, steps=[1], groups=["main"])


def start(book: str, folder, **values):
    defaults = {"1_teacher": dict(guidance=1.0, intervals=10), "2_distill": GROUP, "3_ode_error": MEASURED,
                "4_sample_quality": MEASURED, "5_figures": dict(results_dir=str(folder / "figures"))}[book]  # fmt: skip
    return notebook.start(book, dict(study="gmm", run_dir=str(folder), device="cpu") | defaults | values)


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """A folder with a mixture of 3 dimensions, and students of it."""
    folder = tmp_path_factory.mktemp("run")
    prepare_teacher(start("1_teacher", folder, dimension=3, modes=2))
    study = load_study("gmm", folder, CPU)
    assert (study.teacher.shape, len(study.teacher.labels), study.teacher_id) == ((3,), 8, "mixture-3-2")
    train_group(study, validate(DistillParameters, GROUP | dict(study="gmm", run_dir=str(folder))), CPU)
    return folder


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("book", "values", "message"),
    [
        ("1_teacher", dict(dimension=4, modes=2), "is in use by dimension 3, not 4; choose another run_dir, or delete"),
        ("1_teacher", dict(dimension=3, modes=5), "is in use by modes 2, not 5; choose another run_dir"),
        ("1_teacher", dict(), "is in use by dimension 3, not 2 and modes 2, not 3"),
        ("1_teacher", dict(study="digits"), "is in use by the study gmm, not digits; choose another run_dir"),
        ("2_distill", dict(study="digits", width=64), "is in use by the study gmm, not digits"),
        ("2_distill", dict(study="sdxl"), "is in use by the study gmm, not sdxl"),
        ("3_ode_error", dict(study="digits"), "is in use by the study gmm, not digits"),
        ("4_sample_quality", dict(study="cifar10"), "is in use by the study gmm, not cifar10"),
        ("5_figures", dict(study="digits"), "is in use by the study gmm, not digits"),
    ],
)
def test_another_study_is_refused_before_anything_is_written(book, values, message, used):
    before = contents(used)
    with pytest.raises(InputError, match=message) as error:
        start(book, used, **values)
    assert "\n" not in str(error.value) and contents(used) == before


def test_the_same_study_goes_on(used):
    prepare_teacher(start("1_teacher", used, dimension=3, modes=2))
    assert start("3_ode_error", used).study.teacher_id == "mixture-3-2"


def test_students_of_another_teacher_are_refused(used, tmp_path):
    """Also where the teacher's record is lost: students know what they are of."""
    (tmp_path / "students").mkdir()
    (tmp_path / "students/main.safetensors").write_bytes((used / "students/main.safetensors").read_bytes())
    for book in ("3_ode_error", "4_sample_quality"):
        with pytest.raises(InputError, match="main.safetensors learnt from another teacher; distil the group main again"):
            start(book, tmp_path).study  # noqa: B018
    with pytest.raises(InputError, match="in use by the study gmm, not digits"):
        start("1_teacher", tmp_path, study="digits")
    assert start("2_distill", tmp_path).study.teacher_id == "interleaved_ring"  # which distils them anew


def test_a_foreign_record_is_named(tmp_path):
    for text in ('{"a": 1}', "[]", '{"identity": 3}', "{"):
        (tmp_path / "teacher").mkdir(exist_ok=True)
        (tmp_path / "teacher/teacher.json").write_text(text)
        with pytest.raises(InputError, match="teacher.json is (no teacher's record|damaged).*; delete it and run"):
            start("1_teacher", tmp_path)


def test_parameters_and_registry_know_the_same_studies():
    assert list(STUDIES) == list(USED)


def test_a_notebook_without_a_study_is_not_asked_for_one(tmp_path):
    values = dict(runs=str(tmp_path), run_dir=str(tmp_path / "a"), results_dir=str(tmp_path / "b"), device="cpu")
    assert notebook.start("7_when_it_fails", values).p.runs == [str(tmp_path)]
