"""Full disks, cut files, flipped bits, losses that are not finite, dead kernels: one clear sentence each, nothing lost."""

import multiprocessing
import os
import random
import resource
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from interruption import interrupted_at
from safetensors import SafetensorError

from dcm.pairs import Pairs
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.report import page
from dcm.studies.registry import load_study
from dcm.support import files
from dcm.support.errors import InputError, TrainingError
from dcm.support.files import RowStore, atomic, read_json, read_tensors, write_tensors, write_text
from dcm.training.run import train_group

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
VALUES = dict(
    study="gmm", group_name="main", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0],
    updates=40, batch=16, lr=1e-2, width=8, updates_per_solve=4, checkpoint_seconds=1e-6,
)  # fmt: skip


def parameters(folder, **more):
    return validate(DistillParameters, VALUES | {"run_dir": str(folder)} | more)


@pytest.fixture(scope="module")
def study():
    return load_study("gmm", "unused", CPU)


@pytest.fixture(scope="module")
def undisturbed(study, tmp_path_factory):
    return train_group(study, parameters(tmp_path_factory.mktemp("whole")), CPU)


def interrupted(study, folder, monkeypatch):
    """Leave a checkpoint of update 20 in `folder`; its path."""
    with interrupted_at(21):
        train_group(study, parameters(folder), CPU)
    return folder / "checkpoints/main.safetensors"


def in_child(work) -> int:
    """Run `work` in a fork of this process; how it ended (-9: killed)."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    return child.exitcode


def test_a_full_disk_ends_in_one_sentence_and_leaves_the_old_files(tmp_path):
    """A file size limit is the full disk that a test may make: the same calls fail, with another error number."""
    (tmp_path / "a.txt").write_text("old")
    store = RowStore(tmp_path / "rows.jsonl", ("a",))
    store.add({"a": 1})
    figure = plt.figure()
    writes = {
        "a.safetensors": lambda path: write_tensors(path, {"x": torch.ones(9000)}),
        "a.txt": lambda path: write_text(path, "x" * 9000),
        "rows.jsonl": lambda path: store.add({"a": 2, "b": "x" * 9000}),
        "fig1.png": lambda path: page.save(figure, tmp_path, {"figure": "fig1", "caption": "c" * 5000}),
    }

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
        for name, write in writes.items():
            message = f"no space is left on the disk to write {tmp_path / name}; free some and run again."
            with pytest.raises(InputError) as error:
                write(tmp_path / name)
            assert str(error.value) == message

    assert in_child(work) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "rows.jsonl"]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert 4000 == (tmp_path / "rows.jsonl").stat().st_size
    store = RowStore(tmp_path / "rows.jsonl", ("a",))
    assert list(store.done) == [(1,)], "the half-written row is dropped"
    store.add({"a": 2})
    assert list(RowStore(tmp_path / "rows.jsonl", ("a",)).done) == [(1,), (2,)]


@pytest.mark.parametrize(
    "text", ["I/O error: No space left on device (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"]
)
def test_a_full_disk_as_safetensors_reports_it(tmp_path, monkeypatch, text):
    """safetensors raises an error class of its own, with the system's number in the text."""

    def full(*_, **__):
        raise SafetensorError(f"Error while serializing: {text}")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(InputError, match="no space is left on the disk to write .*a.safetensors; free some"):
        write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    with pytest.raises(PermissionError), atomic(tmp_path / "a.txt"):
        raise PermissionError(13, "Permission denied")  # other errors are not called a full disk


def test_every_flipped_bit_is_seen(tmp_path, undisturbed):
    whole = undisturbed.path.read_bytes()
    before, about = read_tensors(undisturbed.path)
    path, rng, seen = tmp_path / "a.safetensors", random.Random(0), 0
    header = int.from_bytes(whole[:8], "little") + 8
    # The sizes' bytes, everywhere in the header, and everywhere in the weights.
    places = [*range(0, 8), *rng.sample(range(8, header), 150), *rng.sample(range(header, len(whole)), 150)]
    for place in places:
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            tensors, text = read_tensors(path)
        except InputError as error:
            assert "a.safetensors is damaged" in str(error) and "\n" not in str(error)
            seen += 1
        else:  # the name of the checksum itself, or a space
            assert text == about and all(torch.equal(tensors[k], v) for k, v in before.items())
    assert seen > 280


def test_a_cut_checkpoint_is_not_gone_on_with(study, undisturbed, tmp_path, monkeypatch, capsys):
    checkpoint = interrupted(study, tmp_path, monkeypatch)
    whole = checkpoint.read_bytes()
    for length in (0, 7, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "students/main.safetensors").unlink(missing_ok=True)  # finished students are not distilled again
        checkpoint.write_bytes(whole[:length])
        again = train_group(study, parameters(tmp_path), CPU)
        assert "main.safetensors is damaged" in capsys.readouterr().out
        assert all(torch.equal(v, again.tensors[k]) for k, v in undisturbed.tensors.items())


@pytest.mark.parametrize("fault", ["cut", "empty", "foreign"])
def test_damaged_students_are_distilled_again(study, undisturbed, tmp_path, monkeypatch, capsys, fault):
    path = train_group(study, parameters(tmp_path), CPU).path
    if fault == "foreign":
        write_tensors(path, {"x": torch.ones(3)}, {"note": 1})
    else:
        path.write_bytes(path.read_bytes()[: -9 if fault == "cut" else 0])
    with monkeypatch.context() as costly, pytest.raises(InputError, match="main.safetensors (is damaged|holds no)"):
        costly.setattr(type(study), "costly", True)
        train_group(study, parameters(tmp_path), CPU)
    again = train_group(study, parameters(tmp_path), CPU)
    assert "Distilling anew." in capsys.readouterr().out
    assert all(torch.equal(v, again.tensors[k]) for k, v in undisturbed.tensors.items())


def test_a_loss_that_is_not_finite_names_step_checkpoint_and_remedy(study, tmp_path, monkeypatch):
    real = Pairs.solved

    def poisoned(self, updates):
        batches = real(self, updates)
        if 29 in updates:
            batches[list(updates).index(29)].x_hat.fill_(float("nan"))
        return batches

    monkeypatch.setattr(Pairs, "solved", poisoned)
    checkpoint = tmp_path / "checkpoints/main.safetensors"
    message = (
        f"seed 0 is not finite at update 29; lower lr, or use .* The last good checkpoint is {checkpoint} .update 28"
    )
    with pytest.raises(TrainingError, match=message) as error:
        train_group(study, parameters(tmp_path), CPU)
    assert "\n" not in str(error.value)
    tensors, about = read_tensors(checkpoint)
    assert about["update"] == 28 and all(t.isfinite().all() for t in tensors.values())
    monkeypatch.undo()
    train_group(study, parameters(tmp_path), CPU)  # it is good indeed
    with pytest.raises(TrainingError, match="No checkpoint was written before"):
        monkeypatch.setattr(Pairs, "solved", poisoned)
        train_group(study, parameters(tmp_path / "b", checkpoint_seconds=60.0), CPU)


@pytest.mark.parametrize("moment", ["in the middle of a write", "before the new name"])
def test_killed_while_writing(study, undisturbed, tmp_path, monkeypatch, moment):
    """SIGKILL while a checkpoint is written: the one before it is what the next run goes on from."""
    checkpoint = interrupted(study, tmp_path, monkeypatch)
    tensors, about = read_tensors(checkpoint)
    real = files.save_file

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def half(tensors, path, **options):
        real(tensors, path, **options)
        os.truncate(path, os.path.getsize(path) // 2)
        kill()

    def work():
        if moment == "before the new name":
            os.replace = kill
        else:
            files.save_file = half
        write_tensors(checkpoint, tensors, about | {"update": 21})

    assert in_child(work) == -signal.SIGKILL
    left = sorted(p.name for p in checkpoint.parent.iterdir())
    assert len(left) == 2 and left[0].startswith(".main.") and left[1] == "main.safetensors"
    assert read_tensors(checkpoint)[1]["update"] == 20
    again = train_group(study, parameters(tmp_path), CPU)
    assert all(torch.equal(v, again.tensors[k]) for k, v in undisturbed.tensors.items())


def test_damaged_notes_are_named(tmp_path):
    (tmp_path / "teacher.json").write_text('{"a": ')
    with pytest.raises(InputError, match="teacher.json is damaged .* delete it and run the notebook"):
        read_json(tmp_path / "teacher.json")


@pytest.mark.parametrize("fault", ["dead kernel", "no room"])
def test_a_dead_kernel_or_a_full_disk_ends_the_rule_in_one_sentence(tmp_path, fault):
    dies = nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    book = nbformat.v4.new_notebook(
        cells=[dies], metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
    )
    nbformat.write(book, tmp_path / "book.ipynb")
    if fault == "no room":
        (tmp_path / "notebooks").write_text("no folder")
    rule = SimpleNamespace(
        input=SimpleNamespace(notebook=str(tmp_path / "book.ipynb")), params=SimpleNamespace(values={"run_dir": str(tmp_path)}), output=[],
    )  # fmt: skip
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "workflow/run_notebook.py"), {"snakemake": rule})
    expected = {"dead kernel": "its kernel died, killed from outside", "no room": "cannot be written (File exists"}
    assert expected[fault] in str(end.value) and "\n" not in str(end.value)


def test_kernels_keep_memory_unless_told_otherwise(tmp_path, monkeypatch):
    environments = []

    def execute(*_, **__):
        environments.append(dict(os.environ))
        raise OSError("enough")

    monkeypatch.setattr("papermill.execute_notebook", execute)
    rule = SimpleNamespace(
        input=SimpleNamespace(notebook="book.ipynb"), params=SimpleNamespace(values={"run_dir": str(tmp_path)}), output=[],
    )  # fmt: skip
    with mock.patch.dict(os.environ, {"MALLOC_TOP_PAD_": "1"}), pytest.raises(SystemExit, match="enough"):
        os.environ.pop("MALLOC_TRIM_THRESHOLD_", None)
        runpy.run_path(str(ROOT / "workflow/run_notebook.py"), {"snakemake": rule})
    [kernels] = environments
    assert (kernels["MALLOC_TRIM_THRESHOLD_"], kernels["MALLOC_TOP_PAD_"]) == (str(1 << 30), "1")
