import json
import math
import shutil

import pytest
import torch
from interruption import interrupted_at

from dcm.consistency import sample
from dcm.evaluation import students as students_measured
from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.students import measure_students
from dcm.metrics.metric import ode_error
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.schedule import Grid
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import atomic, read_tensors, write_tensors
from dcm.support.rows import RowStore
from dcm.support.seeds import sample_noise
from dcm.training.run import train_group
from dcm.training.saved import load_group, load_groups, snapshot_updates

CPU = torch.device("cpu")
VALUES = dict(
    study="gmm", group_name="main", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0, 1],
    updates=60, batch=32, lr=1e-2, ema=0.9, width=16, snapshots=2, together=4, checkpoint_seconds=1e-6,
)  # fmt: skip


def parameters(folder, **more):
    return validate(DistillParameters, VALUES | {"run_dir": str(folder)} | more)


@pytest.fixture(scope="module")
def study():
    return load_study("gmm", "unused", CPU)


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    return train_group(study, parameters(tmp_path_factory.mktemp("whole")), CPU)


def test_snapshots_are_spaced_in_the_logarithm():
    assert snapshot_updates(1000, 3) == [10, 46, 215, 1000]
    assert snapshot_updates(7, 0) == [7]


def test_an_interrupted_run_ends_with_the_same_weights(study, undisturbed, tmp_path, monkeypatch):
    """Stop after update 33 (no multiple of anything), go on, compare bit for bit."""
    with interrupted_at(34):
        train_group(study, parameters(tmp_path), CPU)
    _, about = read_tensors(tmp_path / "checkpoints/main.safetensors")
    assert about["update"] == 33
    resumed = train_group(study, parameters(tmp_path), CPU)
    assert resumed.updates == undisturbed.updates and resumed.about["evaluations"] == undisturbed.about["evaluations"]
    for name, value in undisturbed.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name
    assert not (tmp_path / "checkpoints/main.safetensors").exists()


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(study, tmp_path, monkeypatch, capsys):
    with interrupted_at(20):
        train_group(study, parameters(tmp_path, lr=1e-3), CPU)
    train_group(study, parameters(tmp_path), CPU)
    assert "from other settings (lr); starting anew" in capsys.readouterr().out


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.ones(100)}, {"note": 1})
    assert read_tensors(path)[1] == {"note": 1}
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="a.safetensors is damaged"):
        read_tensors(path)
    with pytest.raises(InputError, match="does not exist; run the notebook that writes it first"):
        read_tensors(tmp_path / "b.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_missing_group_is_named(tmp_path, undisturbed):
    with pytest.raises(InputError, match="group 'other' is not in .* there: main"):
        load_group(undisturbed.path.parents[1], "other")


def test_what_an_update_costs(study, undisturbed, tmp_path):
    cost = undisturbed.cost_an_update
    assert cost["seconds"] > 0
    assert cost["evaluations"] == undisturbed.about["evaluations"] / 60 / 4 + 3.5 * 32  # a CM has one more
    alone = train_group(study, parameters(tmp_path, snapshots=0, updates=2), CPU)
    assert alone.updates == [2] and math.isnan(alone.cost_an_update["seconds"])


def test_a_main_group_without_both_ends_is_refused(tmp_path, study):
    run = train_group(study, parameters(tmp_path, horizons=["cm", 2], updates=2), CPU)
    with pytest.raises(
        InputError, match="horizons = .1, 2. is not possible for the main group main; allowed: lists with"
    ):
        load_groups(tmp_path, ["main"], "main")
    assert run.group.horizons == (1, 2)


@pytest.mark.parametrize("workers", [1, 3])
def test_measuring_goes_on_where_it_stopped(study, undisturbed, tmp_path, workers):
    evaluation = EvaluationSet(study, undisturbed.path.parents[1], 64, 0, CPU)
    calls = []

    def measure(x, group, member):
        calls.append(member)
        return {"ode_error": ode_error(x, evaluation.teacher_samples(group.solver, group.intervals, member.guidance))}

    store = tmp_path / "rows.jsonl"
    measured = lambda: list(measure_students(study, evaluation, {"main": [1, 2]}, store, measure, workers=workers))
    whole = measured()
    assert len(whole) == len(calls) == 4 * (2 + 2)  # 4 students: 2 snapshots in one step, the end in one and two
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:6]) + lines[6][:20])  # killed while it wrote the seventh row
    calls.clear()
    assert measured() == whole
    assert len(calls) == len(lines) - 6
    assert len(RowStore(store, ("group", "horizon", "seed", "update", "steps")).done) == len(lines)


@pytest.mark.parametrize("kept", [True, False])
def test_two_notebooks_share_the_students_samples(study, undisturbed, tmp_path, monkeypatch, kept):
    """One from either end: each set is sampled once, unless sets are too large to keep; the same rows."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed.path.parent, run / "students")
    if not kept:
        monkeypatch.setattr(students_measured, "KEPT", 0)
    evaluation, sampled, real = EvaluationSet(study, run, 32, 0, CPU), [], EvaluationSet.student_samples
    monkeypatch.setattr(EvaluationSet, "student_samples", lambda *a: sampled.append(a[-1]) or real(*a))
    seen: dict[str, list] = {"first": [], "last": []}

    def rows(name):
        measure = lambda x, group, member: seen[name].append(x) or {"mean": float(x.mean())}
        return list(
            measure_students(study, evaluation, {"main": [1, 2]}, tmp_path / name, measure, last_first=name == "last")
        )

    assert rows("first") == rows("last")
    assert len(sampled) == (4 if kept else 8)  # two snapshots, and the end in one and in two steps
    assert len(list((run / "evaluation").glob("students-*"))) == 4 if kept else not (run / "evaluation").exists()
    for x, y in zip(seen["first"][:4], seen["last"][-4:]):
        assert torch.equal(x, y)
    assert not torch.equal(seen["first"][0], seen["last"][0]), "it begins at the other end"


# float32 sums in another order: the largest difference that another chunk size may make to a sample of size about 1.
TOLERANCE = 2e-5


@pytest.mark.parametrize("chunk", [1, 7, 16, 49])
def test_sampling_does_not_depend_on_the_chunk(study, undisturbed, tmp_path, monkeypatch, chunk):
    """The same noise, students and teacher in parts of another size, a size of one included."""
    students, metrics, samples = undisturbed.students(study, 60, CPU), [], []
    for size in (1 << 16, chunk):
        monkeypatch.setattr(study, "chunk", size)
        evaluation = EvaluationSet(study, tmp_path / str(size), 50, 0, CPU)
        of_students = evaluation.student_samples(students, 5, 2)
        of_teacher = evaluation.teacher_samples("heun", 10, 2.0)
        samples.append((of_students, of_teacher))
        metrics.append(study.quality.measure(of_students[0], evaluation.condition, of_teacher))
    for whole, parts in zip(*samples):
        assert (whole - parts).abs().max() < TOLERANCE
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


def test_evaluation_does_not_depend_on_order_or_number(study, undisturbed, tmp_path):
    """A sample's noise is its own, whatever else is drawn; a group's rows are its own, whatever else is measured."""
    few, many = (EvaluationSet(study, tmp_path, count, 3, CPU) for count in (20, 50))
    assert torch.equal(few.noise, many.noise[:20]) and torch.equal(few.fresh_noise(2), many.fresh_noise(2)[:20])
    backwards = sample_noise(3, "evaluation", list(range(49, -1, -1)), study.teacher.shape)
    assert torch.equal(backwards.flip(0), many.noise)
    students, grid = undisturbed.students(study, 60, CPU), Grid(5)
    there, back = (
        sample(study.f, students, x.expand(students.size, -1, -1), c.expand(students.size, -1), grid, [])
        for x, c in ((many.noise, many.condition), (many.noise.flip(0), many.condition.flip(0)))
    )
    assert (there - back.flip(1)).abs().max() < TOLERANCE

    run = tmp_path / "run"
    train_group(study, parameters(run), CPU)
    train_group(study, parameters(run, group_name="other", horizons=["cm"], updates=10), CPU)
    evaluation = EvaluationSet(study, run, 32, 0, CPU)

    def measure(x, group, member):
        return {"ode_error": ode_error(x, evaluation.teacher_samples(group.solver, group.intervals, member.guidance))}

    orders = [{"main": [1, 2], "other": [1]}, {"other": [1], "main": [2, 1]}]
    rows = []
    for i, order in enumerate(orders):
        rows.append(list(measure_students(study, evaluation, order, tmp_path / f"rows{i}", measure)))
        shutil.rmtree(run / "evaluation")  # sampled anew
    key = lambda row: json.dumps(row, sort_keys=True)
    assert sorted(rows[0], key=key) == sorted(rows[1], key=key) and rows[0] != rows[1]


def test_the_same_seed_gives_the_same_weights(study, undisturbed, tmp_path):
    again = train_group(study, parameters(tmp_path, checkpoint_seconds=60.0), CPU)
    for name, value in undisturbed.tensors.items():
        assert torch.equal(value, again.tensors[name]), name
