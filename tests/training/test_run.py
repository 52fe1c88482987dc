
import pytest
import torch
from interruption import interrupted_at

from dcm.evaluation.samples import EvaluationSet, sample_group
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import atomic, read_tensors, write_tensors
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
    assert snapshot_updates(1000, 4) == [10, 46, 215, 750, 1000] and snapshot_updates(1000, 1) == [750, 1000]
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


@pytest.mark.parametrize("at_switch", ["continue", "restart"])
@pytest.mark.parametrize("update", [30, 34])  # the last of a part, whose follower the restart hangs on, and another
def test_a_run_interrupted_about_a_switch_ends_with_the_same_weights(study, tmp_path, at_switch, update):
    more = dict(horizons=["cm", "direct", "direct>cm", "anneal"], at_switch=at_switch)
    whole = train_group(study, parameters(tmp_path / "whole", **more), CPU)
    assert whole.group.switches(60) == [20, 30, 40] and 30 in whole.updates  # of anneal's own none is kept
    with interrupted_at(update + 1):
        train_group(study, parameters(tmp_path / "cut", **more), CPU)
    resumed = train_group(study, parameters(tmp_path / "cut", **more), CPU)
    assert whole.group == resumed.group == load_group(tmp_path / "cut", "main").group
    for name, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name


def test_the_average_at_a_switch(study, tmp_path):
    """It goes on, or starts anew with the first weights after the switch."""
    found = {}
    for at_switch in ("continue", "restart"):
        more = dict(horizons=["cm", "direct", "direct>cm"], at_switch=at_switch, ema=0.999, lr=1e-3)
        found[at_switch] = train_group(study, parameters(tmp_path / at_switch, **more), CPU)
    of = {name: g.tensors for name, g in found.items()}
    assert torch.equal(of["continue"]["30/weights.1"], of["restart"]["30/weights.1"])
    moved = {name: (t["60/weights.1"] - t["30/weights.1"]).norm() for name, t in of.items()}
    assert moved["restart"] > 5 * moved["continue"]  # an average over thousands of updates hardly moves in 30


def test_students_lost_before_they_were_sampled_cost_no_training(study, undisturbed, tmp_path, capsys):
    """Snakemake deletes what a failed rule made: the last checkpoint stays until the students are sampled."""
    train_group(study, parameters(tmp_path), CPU).path.unlink()
    again = train_group(study, parameters(tmp_path), CPU)
    assert "Going on after update 59." in capsys.readouterr().out
    assert all(torch.equal(value, again.tensors[name]) for name, value in undisturbed.tensors.items())
    sample_group(EvaluationSet(study, tmp_path, 16, 0, CPU), again, [1])
    assert list((tmp_path / "checkpoints").iterdir()) == []


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


def test_a_main_group_without_both_ends_is_refused(tmp_path, study):
    run = train_group(study, parameters(tmp_path, horizons=["cm", 2], updates=2), CPU)
    with pytest.raises(
        InputError, match="horizons = .1, 2. is not possible for the main group main; allowed: lists with"
    ):
        load_groups(tmp_path, ["main"], "main")
    assert run.group.horizons == (1, 2)


def test_the_same_seed_gives_the_same_weights(study, undisturbed, tmp_path):
    again = train_group(study, parameters(tmp_path, checkpoint_seconds=60.0), CPU)
    for name, value in undisturbed.tensors.items():
        assert torch.equal(value, again.tensors[name]), name
