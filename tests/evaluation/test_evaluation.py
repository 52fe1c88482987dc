"""Sampling, which has one place, and measuring what was sampled."""

import json
import shutil

import pandas as pd
import pytest
import torch

from dcm.consistency import sample
from dcm.evaluation import samples as sampling
from dcm.evaluation.samples import EvaluationSet, sample_group
from dcm.evaluation.shown import apart, samples_to_show, target_on
from dcm.evaluation.students import measure_students
from dcm.metrics.metric import ode_error
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.registry import load_study
from dcm.support import files
from dcm.support.files import RowStore
from dcm.support.seeds import sample_noise
from dcm.training.run import train_group

CPU = torch.device("cpu")
VALUES = dict(
    study="gmm", group_name="main", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0, 1],
    updates=60, batch=32, lr=1e-2, ema=0.9, width=16, snapshots=2, updates_per_solve=4,
)  # fmt: skip


def distil(study, folder, **more):
    return train_group(study, validate(DistillParameters, VALUES | {"run_dir": str(folder)} | more), CPU)


@pytest.fixture(scope="module")
def study():
    return load_study("gmm", "unused", CPU)


@pytest.fixture(scope="module")
def main(study, tmp_path_factory):
    return distil(study, tmp_path_factory.mktemp("whole"))


def set_of(study, folder, samples=32, seed=0):
    return EvaluationSet(study, folder, samples, seed, CPU)


def one_and_two(group):
    return [1, 2]


def test_measuring_goes_on_where_it_stopped(study, main, tmp_path):
    evaluation, calls, store = set_of(study, tmp_path), [], tmp_path / "rows.jsonl"

    def measure(x, group, member):
        calls.append(member)
        return {"ode_error": ode_error(x, evaluation.teacher_samples(group.solver, group.intervals, member.guidance))}

    measured = lambda: list(measure_students(evaluation, [main], one_and_two, store, ["ode_error"], measure))
    whole = measured()
    assert len(whole) == len(calls) == 4 * (2 + 2)  # 4 students: 2 snapshots in one step, the end in one and two
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:6]) + lines[6][:20])  # killed while it wrote the seventh row
    calls.clear()
    assert measured() == whole
    assert len(calls) == len(lines) - 6
    assert len(RowStore(store, ("group", "horizon", "seed", "update", "steps")).done) == len(lines)


def test_a_metric_that_came_later_is_measured_and_nothing_else_is(study, main, tmp_path, monkeypatch):
    evaluation, store = set_of(study, tmp_path), tmp_path / "rows.jsonl"
    sample_group(evaluation, main, [1, 2])
    monkeypatch.setattr(EvaluationSet, "student_samples", None)  # what was sampled is not sampled again
    calls: list = []

    def rows(*names):
        calls.clear()
        measure = lambda x, group, member: calls.append(member) or {n: float(getattr(x, n)()) for n in names}
        return list(measure_students(evaluation, [main], one_and_two, store, names, measure))

    before = rows("mean")
    assert len(calls) == 16 and rows("mean") == before and calls == []
    after = rows("mean", "std")
    assert len(calls) == 16 and pd.DataFrame(after).drop(columns="std").equals(pd.DataFrame(before))
    store.write_text("".join(store.read_text().splitlines(keepends=True)[:-3]))  # three rows lack it again
    assert rows("mean", "std") == after and len(calls) == 3


@pytest.mark.parametrize("kept", [True, False])
def test_sampling_has_one_place(study, main, tmp_path, monkeypatch, kept):
    """Every set is sampled once, at the end of notebook 2, and read by those that measure; sets too large to keep are
    sampled by those alone. The samples are the same."""
    if not kept:
        monkeypatch.setattr(sampling, "KEPT", {"cpu": 0})
    sampled, real = [], EvaluationSet.student_samples
    monkeypatch.setattr(EvaluationSet, "student_samples", lambda *a: sampled.append(a[3]) or real(*a))
    compiled: list = []
    monkeypatch.setattr(sampling, "COMPILED", 5 * 32 * len(main.group.members) - 1)
    monkeypatch.setattr(type(study), "compile_students", lambda *_: compiled.append(_))
    sample_group(set_of(study, tmp_path), main, [1, 2, 8])  # the grid has 5 intervals
    assert sampled == ([1, 1, 1, 2] if kept else []) and len(compiled) == len(sampled)
    seen: list[list] = [[], []]
    for i, xs in enumerate(seen):
        evaluation = set_of(study, tmp_path)
        list(measure_students(evaluation, [main], one_and_two, tmp_path / f"{i}", [], lambda x, *_: xs.append(x) or {}))
    assert len(sampled) == (4 if kept else 8)
    assert len(seen[0]) == 16 and all(torch.equal(x, y) for x, y in zip(*seen))
    names = {p.name for p in (tmp_path / "samples").glob("main-*")}
    assert names == ({f"main-{u}-1.safetensors" for u in main.updates} | {"main-60-2.safetensors"} if kept else set())
    shown = samples_to_show(set_of(study, tmp_path), main, [1, 2])
    assert list(shown) == ["teacher", "CM, 1 step", "CM, 2 steps", "Direct CM, 1 step", "Direct CM, 2 steps"]
    assert torch.allclose(shown["CM, 1 step"], seen[0][8], atol=1e-6)


def test_samples_of_another_set_of_other_students_or_damaged_are_made_again(study, main, tmp_path, capsys):
    first = set_of(study, tmp_path).of_group(main, 60, 1)
    path = tmp_path / "samples/main-60-1.safetensors"
    assert torch.equal(set_of(study, tmp_path).of_group(main, 60, 1), first)
    assert not torch.allclose(set_of(study, tmp_path, seed=1).of_group(main, 60, 1), first)
    assert set_of(study, tmp_path, 48).of_group(main, 60, 1).shape == (4, 48, 2)
    other = distil(study, tmp_path, lr=1e-3)
    assert not torch.allclose(set_of(study, tmp_path).of_group(other, 60, 1), first)
    assert torch.equal(set_of(study, tmp_path).of_group(main, 60, 1), first)
    path.write_bytes(path.read_bytes()[:-9])
    assert capsys.readouterr().out == ""
    assert torch.equal(set_of(study, tmp_path).of_group(main, 60, 1), first)
    assert capsys.readouterr().out == f"{path} is damaged, and made again.\n"


def test_the_teachers_solution_is_read_once(study, main, tmp_path, monkeypatch):
    sample_group(set_of(study, tmp_path), main, [1])
    read, real = [], files.read_tensors
    monkeypatch.setattr(files, "read_tensors", lambda path, *a: read.append(path.name) or real(path, *a))
    evaluation = set_of(study, tmp_path)

    def measure(x, group, member):
        return {"ode_error": ode_error(x, evaluation.teacher_samples("ddim", 5, 2.0)), "mean": float(evaluation.exact_samples(2.0).mean())}  # fmt: skip

    list(measure_students(evaluation, [main], one_and_two, tmp_path / "rows.jsonl", ["ode_error"], measure))
    assert sorted(read) == sorted({*read}) and {"ddim-5-2.safetensors", "exact-2.safetensors"} <= {*read}


def test_targets_on_a_trajectory(study, main):
    """Where the teacher's steps reach data, the solution; else the student's own answer where they end."""
    grid, c = Grid(5), torch.zeros(3, dtype=torch.long)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    paths = solve(study.teacher, x, 5, c, 2.0, "ddim", grid, trajectory=True).trajectory
    students = main.students(study, 60, CPU)
    for n, h in ((5, 5), (5, 2), (2, 4)):
        x_hat, target = target_on(study, students, 1, paths[5 - n :], n, h, c, grid)
        assert torch.allclose(x_hat, solve(study.teacher, paths[5 - n], n, c, 2.0, "ddim", grid, h).x, atol=1e-6)
        t = torch.full((4, 3), grid.time(n - h) if h < n else 0)
        own = study.f(students, x_hat.expand(4, -1, -1), t, c.expand(4, -1))[1]
        assert torch.allclose(target, own if h < n else paths[-1], atol=1e-6)


def test_loss_curves_are_a_table(main):
    losses = main.losses
    assert list(losses) == ["update", "method", "guidance", "seed", "loss"]
    assert len(losses) == 60 * 4 and losses["update"].max() == 60 and set(losses.method) == {"CM", "Direct CM"}
    last = losses[(losses["update"] == 60) & (losses.method == "Direct CM") & (losses.seed == 1)]
    assert last.loss.item() == float(main.tensors["loss"][-1, 3])


# float32 sums in another order: the largest difference that another chunk size may make to a sample of size about 1.
TOLERANCE = 2e-5


@pytest.mark.parametrize("chunk", [1, 7, 16, 49])
def test_sampling_does_not_depend_on_the_chunk(study, main, tmp_path, monkeypatch, chunk):
    """The same noise, students and teacher in parts of another size, a size of one included."""
    students, metrics, samples = main.students(study, 60, CPU), [], []
    for size in (1 << 16, chunk):
        monkeypatch.setattr(study, "chunk", size)
        evaluation = set_of(study, tmp_path / str(size), 50)
        of_students = evaluation.student_samples(students, 5, 2)
        of_teacher = evaluation.teacher_samples("heun", 10, 2.0)
        samples.append((of_students, of_teacher))
        metrics.append(study.quality.measure(of_students[0], evaluation.condition, of_teacher))
    for whole, parts in zip(*samples):
        assert (whole - parts).abs().max() < TOLERANCE
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4)


def test_evaluation_does_not_depend_on_order_or_number(study, main, tmp_path):
    """A sample's noise is its own, whatever else is drawn; a group's rows are its own, whatever else is measured."""
    few, many = (set_of(study, tmp_path, count, seed=3) for count in (20, 50))
    assert torch.equal(few.noise, many.noise[:20]) and torch.equal(few.fresh_noise(2), many.fresh_noise(2)[:20])
    backwards = sample_noise(3, "evaluation", list(range(49, -1, -1)), study.teacher.shape)
    assert torch.equal(backwards.flip(0), many.noise)
    students, grid = main.students(study, 60, CPU), Grid(5)
    there, back = (
        sample(study.f, students, x.expand(students.size, -1, -1), c.expand(students.size, -1), grid, [])
        for x, c in ((many.noise, many.condition), (many.noise.flip(0), many.condition.flip(0)))
    )
    assert (there - back.flip(1)).abs().max() < TOLERANCE

    other = distil(study, tmp_path, group_name="other", horizons=["cm"], updates=10)
    rows = []
    for i, (groups, steps) in enumerate([([main, other], [1, 2]), ([other, main], [2, 1])]):
        evaluation = set_of(study, tmp_path)
        measure = lambda x, g, m: {"e": ode_error(x, evaluation.teacher_samples(g.solver, g.intervals, m.guidance))}
        steps_of = lambda name: steps if name == "main" else [1]
        rows.append(list(measure_students(evaluation, groups, steps_of, tmp_path / f"rows{i}", ["e"], measure)))
        shutil.rmtree(tmp_path / "samples")  # sampled anew
    key = lambda row: json.dumps(row, sort_keys=True)
    assert sorted(rows[0], key=key) == sorted(rows[1], key=key) and rows[0] != rows[1]


def test_trajectories_to_be_looked_at_lie_apart():
    paths = torch.randn(5, 48, 2, generator=torch.Generator().manual_seed(0))
    chosen = apart(paths, 6)
    assert len(set(chosen)) == 6 and chosen[0] == (paths[0] - paths[-1]).norm(dim=1).argmax()

    def closest(rows) -> float:
        between = [torch.cdist(a, b) for a in (paths[0, rows], paths[-1, rows]) for b in (paths[0, rows], paths[-1, rows])]
        return float(torch.stack(between)[:, ~torch.eye(6, dtype=torch.bool)].min())

    assert closest(chosen) > max(closest(list(range(i, i + 6))) for i in range(0, 48, 6))
