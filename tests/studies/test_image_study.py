import json
import shutil

import numpy as np
import pytest
import torch
from contrastive import knn_accuracy, linear_accuracy
from interruption import interrupted_at
from PIL import Image

from dcm.data import images as image_data
from dcm.horizon import Group, horizon_target
from dcm.metrics.distances import FeatureSet, frechet
from dcm.metrics.features import Classifier, SelfSupervised
from dcm.metrics.metric import ENCODERS
from dcm.pairs import Pairs
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, TeacherParameters
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.images import prepare as image_preparation
from dcm.studies.images import study as image_study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import sha256
from dcm.training.run import train_group

CPU = torch.device("cpu")
TINY = dict(widths=(16, 16), attention=(False, False), layers=1, head_width=8, groups=8)


@pytest.fixture(scope="module", autouse=True)
def tiny_encoder(tmp_path_factory):
    """In place of the shipped one of cifar10: it takes seconds on a CPU."""
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(image_study.SHIPPED / "digits_encoder", folder / "digits_encoder")
    torch.manual_seed(0)
    SelfSupervised(3, (8, 8)).save(folder / "cifar10_encoder", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_study, "SHIPPED", folder)
        yield folder


def parameters(folder, **more):
    values = dict(study="digits", run_dir=str(folder), updates=3, batch=8, guidance=[1.0], intervals=[10])
    return validate(TeacherParameters, values | more)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_preparation.CLASSIFIERS, "digits", dict(updates=3, batch=8))
        patch.setattr(image_preparation, "DIGITS_NETWORK", TINY)
        image_preparation.prepare(parameters(folder), folder, CPU)
    return folder


@pytest.fixture
def study(digits):
    return load_study("digits", digits, CPU)


def test_a_finished_teacher_is_not_trained_again(digits, monkeypatch):
    monkeypatch.setattr(image_preparation, "train_teacher", lambda *a: pytest.fail("trained again"))
    image_preparation.prepare(parameters(digits), digits, CPU)
    record = json.loads((digits / "teacher/teacher.json").read_text())
    assert record["identity"]["parameters"]["updates"] == 3


def test_students_start_as_copies_of_the_teacher(study):
    students = study.make_students([0, 1], 0)
    x, t, c = torch.randn(2, 4, 1, 8, 8), torch.randint(1, 1001, (2, 4)), torch.randint(0, 10, (2, 4))
    assert not torch.equal(students(x, t, c)[0], students(x[:1].expand(2, *x.shape[1:]), t, c)[1])
    study.start_from_teacher(students, [0, 1], 1)
    for m in range(2):
        assert torch.equal(students(x, t, c)[m], study.teacher.output(x[m], t[m], c[m]))


def test_adapters_start_as_the_teacher_and_alone_are_trained(study, digits, monkeypatch):
    """LoRA students: equal to the teacher at first; after training the network below is untouched; they load again."""
    students = study.make_students([0, 1, 0], 64, 2)
    study.start_from_teacher(students, [0, 1, 0], 1)
    x, t, c = torch.randn(3, 4, 1, 8, 8), torch.randint(1, 1001, (3, 4)), torch.randint(0, 10, (3, 4))
    for m in range(3):
        assert torch.allclose(students(x, t, c)[m], study.teacher.output(x[m], t[m], c[m]), atol=1e-6)
    trained = {n for n, p in students.networks[0].named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    state = [net.state_dict() for net in students.networks]
    drawn = [n for n in state[0] if "lora_A" in n]
    assert all(torch.equal(state[0][n], state[2][n]) and not torch.equal(state[0][n], state[1][n]) for n in drawn)

    p = validate(
        DistillParameters,
        dict(study="digits", run_dir=str(digits), group_name="lora", device="cpu", solver="ddim", intervals=5, lr=1e-2,
             guidance=[2.0], horizons=["cm", "direct"], seeds=[0], updates=4, batch=4, pretrain=1, lora_rank=2, ema=0.5),
    )  # fmt: skip
    group = train_group(study, p, CPU)
    students, teacher = group.students(study, 4, CPU), study.teacher.unet.state_dict()
    for m in (0, 1):
        kept = {n.partition(".unet.")[2]: v for n, v in group.tensors.items() if n.startswith(f"4/networks.{m}.")}
        below = {n.replace(".base_layer.", "."): v for n, v in kept.items() if "lora_" not in n}
        assert below.keys() == teacher.keys() and all(torch.equal(below[n], teacher[n]) for n in teacher)
    added, layers = students(x[:2], t[:2], c[:2]), [m for m in students.modules() if hasattr(m, "lora_A")]
    for layer in layers:
        assert layer.merged  # with the weights beneath, for evaluation
        layer.unmerge()
    assert layers and torch.allclose(students(x[:2], t[:2], c[:2]), added, atol=1e-5)
    moved = [float((students(x[:2], t[:2], c[:2])[m] - study.teacher.output(x[m], t[m], c[m])).std()) for m in (0, 1)]
    assert min(moved) > 1e-4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(study="gmm"), "lora_rank = 2 is not possible for the study gmm, which does not use it; allowed: 0"),
        (dict(study="sdxl", pretrain=0), "lora_rank = 2 is not possible; allowed: 0, or any with width = 0"),
        (dict(study="digits", pretrain=0), "pretrain = 0 is not possible; allowed: 1 with lora_rank"),
    ],
)
def test_adapters_need_a_network_below(values, message, tmp_path):
    group = dict(group_name="a", solver="ddim", intervals=5, guidance=[2.0], horizons=["cm"], seeds=[0])
    about = dict(run_dir=str(tmp_path / "run"), updates=1, batch=1, pretrain=1, lora_rank=2)
    with pytest.raises(InputError, match=message):
        validate(DistillParameters, group | about | values)


def test_a_students_consistency_function_starts_as_the_teachers_denoiser(study):
    students = study.make_students([0], 0)
    study.start_from_teacher(students, [0], 1)
    x, t, c = torch.randn(1, 4, 1, 8, 8), torch.full((1, 4), 600), torch.zeros(1, 4, dtype=torch.long)
    eps = study.teacher.predict_noise(x[0], t[0], c[0])
    x0_hat = (x[0] - study.teacher.schedule.sigma(t[0], x[0]) * eps) / study.teacher.schedule.alpha(t[0], x[0])
    assert torch.allclose(study.f(students, x, t, c)[0], x0_hat, atol=1e-4)


def test_the_objective_takes_images(study):
    group = Group("heun", 5, (2.0,), (1, 5), (0,))
    students = study.make_students([0, 0], 0)
    [batch] = Pairs(study.teacher, study.data, group, 6, CPU).solved([1])
    target = horizon_target(study.f, students, batch)
    whole = solve(study.teacher, batch.x[1], batch.t[1] // 200, batch.condition[1], 2.0, "heun", Grid(5)).x
    assert target.shape == (2, 6, 1, 8, 8) and torch.allclose(target[1], whole, atol=1e-5)


def test_the_reference_is_a_finer_grid(study):
    x, c = torch.randn(3, 1, 8, 8), torch.arange(3)
    fine = solve(study.teacher, x, 120, c, 1.0, "ddim", Grid(200)).x
    assert torch.allclose(study.reference(x, 3, c, 1.0, Grid(5)), fine, atol=1e-5)


def test_a_run_on_images_resumes_bit_for_bit(study, tmp_path, monkeypatch):
    values = dict(
        study="digits", group_name="g", solver="ddim", intervals=4, guidance=[2.0], horizons=["cm", "direct"], seeds=[0],
        updates=6, batch=4, lr=1e-3, ema=0.9, pretrain=1, snapshots=1, checkpoint_seconds=1e-6,
    )  # fmt: skip
    run = lambda folder: train_group(study, validate(DistillParameters, values | {"run_dir": str(folder)}), CPU)  # noqa: E731
    whole = run(tmp_path / "whole")
    with interrupted_at(4):
        run(tmp_path / "killed")
    resumed = run(tmp_path / "killed")
    for name, value in whole.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name


def test_an_altered_teacher_is_refused(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "copy")
    weights = tmp_path / "copy/teacher/weights.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-5] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(InputError, match="is not the file it should be"):
        load_study("digits", tmp_path / "copy", CPU)
    with pytest.raises(InputError, match="holds no teacher of the study digits; run notebook 1"):
        load_study("digits", tmp_path / "nowhere", CPU)


def test_data_must_suit_the_study(tmp_path):
    for study, data, allowed in (("digits", "folder", "'builtin'"), ("cifar10", "builtin", "cifar10, folder, teacher")):
        with pytest.raises(
            InputError, match=f"data = '{data}' is not possible for the study {study}.*allowed: {allowed}"
        ):
            parameters(tmp_path, study=study, data=data)
    with pytest.raises(InputError, match="a teacher needs images to train on"):
        parameters(tmp_path, study="cifar10", data="teacher")


@pytest.mark.parametrize("updates", [0, 3])
@pytest.mark.parametrize("data", ["cifar10", "folder"])
def test_absent_images_are_told_how_to_get_before_any_work(data, updates, tmp_path, monkeypatch):
    monkeypatch.setattr(image_preparation, "train_teacher", lambda *a: pytest.fail("training began"))
    p = parameters(tmp_path, study="cifar10", data=data, data_dir=str(tmp_path / "none"), updates=updates)
    with pytest.raises(InputError, match="none.*`make study-cifar10 DOWNLOAD=1` fetches CIFAR-10") as error:
        image_preparation.prepare(p, tmp_path / "run", CPU)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_digits_classifier_is_the_shipped_one(digits, tmp_path, monkeypatch):
    """With its settings it is copied, verified, and judges well; with others one is trained."""
    monkeypatch.setattr(image_preparation, "train_classifier", lambda *a, **k: pytest.fail("trained"))
    image_preparation.make_classifier("digits", image_data.digits(), tmp_path / "a.safetensors")
    classifier, (x, labels) = Classifier.load(tmp_path / "a.safetensors"), image_data.digits().images("held_out")
    right = float((classifier.classify(x) == labels).double().mean())
    assert classifier.accuracy > 0.98 and right == pytest.approx(classifier.accuracy, abs=0.003)
    assert sha256(digits / "teacher/classifier.safetensors") != sha256(tmp_path / "a.safetensors")  # the fixture's own
    shutil.copytree(image_preparation.SHIPPED / "digits_classifier", tmp_path / "digits_classifier")
    monkeypatch.setattr(image_preparation, "SHIPPED", tmp_path)
    with (tmp_path / "digits_classifier/weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="is not the file it should be: its SHA-256 begins"):
        image_preparation.make_classifier("digits", image_data.digits(), tmp_path / "b.safetensors")


@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_an_encoder_that_is_missing_or_altered_is_refused_before_any_work(harm, digits, tmp_path, monkeypatch, tiny_encoder):
    shutil.copytree(tiny_encoder, tmp_path / "weights")
    weights = tmp_path / "weights/digits_encoder/weights.safetensors"
    raw = weights.read_bytes()
    weights.unlink() if harm == "missing" else weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    monkeypatch.setattr(image_study, "SHIPPED", tmp_path / "weights")
    message = "weights.safetensors is missing; restore it" if harm == "missing" else "is not the file it should be"
    for work in (lambda: image_preparation.prepare(parameters(tmp_path), tmp_path, CPU), lambda: load_study("digits", digits, CPU)):
        with pytest.raises(InputError, match=message) as error:
            work()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "teacher").exists()


def test_the_shipped_encoder_of_digits_is_as_good_as_its_record_says():
    encoder, data = image_study.load_encoder("digits"), image_data.digits()
    train, test = (encoder.features(data.images(part)[0]) for part in ("train", "held_out"))
    sets = train, data.train_labels, test, data.held_out_labels
    assert knn_accuracy(*sets, k=20) == pytest.approx(encoder.accuracy["kNN, k 20"], abs=0.005) and min(encoder.accuracy.values()) > 0.9
    assert linear_accuracy(*sets) == pytest.approx(encoder.accuracy["linear"], abs=0.005)


def test_cifar_path_on_an_image_folder(tmp_path, monkeypatch):
    """The cifar10 study end to end on a tiny network: train, load, sample, measure on ImageNet features."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    monkeypatch.setitem(image_preparation.CLASSIFIERS, "cifar10", dict(updates=2, batch=4))
    monkeypatch.setattr(image_preparation, "CIFAR_NETWORK", TINY)
    monkeypatch.setattr(image_study, "HELD_OUT", 8)
    p = parameters(tmp_path, study="cifar10", data="folder", data_dir=str(tmp_path / "images"), updates=2, batch=4)
    image_preparation.prepare(p, tmp_path / "run", CPU)
    study = load_study("cifar10", tmp_path / "run", CPU)
    assert study.teacher.num_classes == 2 and len(study.data.held_out) == 8
    c = torch.arange(8) % 2
    x = solve(study.teacher, torch.randn(8, 3, 32, 32), 2, c, 1.0, "ddim", Grid(2)).x
    measured = study.quality.measure(x, c, x)
    assert measured["fd_teacher"] < 1e-3 and measured["fd_real"] > 1 and measured["precision"] == 1
    assert measured["fd_classifier"] < 1e-3 < measured["fd_classifier_real"] and set(measured) == set(
        study.quality.metrics
    )
    features = lambda v: FeatureSet(study.quality.classifier.features(v))  # noqa: E731
    real = study.data.images("held_out")[0]
    assert measured["fd_classifier_real"] == pytest.approx(frechet(features(x.clamp(-1, 1)), features(real)))
    columns = {e.name: ([*read][0], [*read][1], [*read][-1]) for e, read in study.quality.views}
    assert columns == {name: ENCODERS["cifar10"][name] for name in columns} and len(columns) == 3  # without Inception
    assert "Not measured: FID and KID on Inception" in study.quality.note
