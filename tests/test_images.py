"""The image studies' own parts: data, the UNet teacher, its training, image quality."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dcm.data import ImageSet, cifar10, digits, image_folder, teacher_samples
from dcm.errors import InputError, TrainingError
from dcm.evaluation import in_threads
from dcm.features import Classifier, EfficientNetFeatures, InceptionFeatures, train_classifier
from dcm.image_quality import ImageQuality, frechet, kernel_distance, precision_recall, sharpness
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.teacher_training import TeacherTraining, train_teacher
from dcm.teachers.base import Teacher, guided_noise
from dcm.teachers.unet import UNetConfig, UNetTeacher

TINY = UNetConfig(8, 1, 10, (16, 16), (False, True), layers=1, head_width=8, groups=8)


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture()
def unet():
    torch.manual_seed(0)
    return UNetTeacher(TINY).eval().requires_grad_(False)


def batch(size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 8, 8, generator=g)
    return x, torch.randint(1, 1001, (size,), generator=g), torch.randint(0, 10, (size,), generator=g)


# --- data


def test_digits_split_is_fixed_disjoint_and_in_range(data):
    again = digits()
    assert torch.equal(data.train, again.train) and torch.equal(data.held_out, again.held_out)
    assert len(data.train) + len(data.held_out) == 1797 and data.shape == (1, 8, 8) and data.num_classes == 10
    assert torch.bincount(data.held_out_labels, minlength=10).min() > 30  # every class is held out
    x, _ = data.images("train")
    assert x.min() == -1 and x.max() == 1
    both = torch.cat([data.train, data.held_out]).flatten(1)
    assert len(both.unique(dim=0)) == 1797  # so no image can lie in both parts


def test_a_draw_pairs_images_with_their_labels_and_depends_on_the_generator_alone(data):
    x, c = data.draw(torch.Generator().manual_seed(3), 32)
    y, d = data.draw(torch.Generator().manual_seed(3), 32)
    assert torch.equal(x, y) and torch.equal(c, d) and c.dtype == torch.int64
    all_x, all_c = data.images("train")
    for image, label in zip(x, c):
        assert label in all_c[(all_x == image).flatten(1).all(1)]


def test_flips_mirror_about_half_of_the_images():
    ramp = torch.arange(8, dtype=torch.uint8).expand(1, 1, 8, 8).clone()
    label = torch.zeros(1, dtype=torch.int64)
    images = ImageSet(ramp, label, ramp[:0], label[:0], ("a",), peak=7, flip=True)
    x, _ = images.draw(torch.Generator().manual_seed(0), 400)
    assert 0.4 < (x[:, 0, 0, 0] == 1).double().mean() < 0.6
    assert torch.equal(x[:, 0, 0, 0], -x[:, 0, 0, -1])


def write_folder(root, sizes=((8, 8), (8, 8), (8, 8))):
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for i, size in enumerate(sizes):
            value = 100 * (label == "dog") + i
            Image.new("RGB", size, (value, value, value)).save(root / label / f"{i}.png")
    return root


def test_image_folder_reads_labels_and_pixels_and_its_cache_is_used_and_renewed(tmp_path):
    root = write_folder(tmp_path / "images")
    first = image_folder(root, (3, 8, 8), held_out=2)
    assert first.classes == ("cat", "dog") and len(first.train) == 4 and first.shape == (3, 8, 8)
    assert torch.equal(first.train[:, 0, 0, 0] >= 100, first.train_labels == 1)
    assert len(list(root.glob(".decoded-*"))) == 1
    second = image_folder(root, (3, 8, 8), held_out=2)
    assert torch.equal(first.train, second.train) and torch.equal(first.held_out, second.held_out)
    Image.new("RGB", (8, 8), (250, 250, 250)).save(root / "dog" / "new.png")
    third = image_folder(root, (3, 8, 8), held_out=0)
    assert len(third.train) == 7 and 250 in third.train


def test_image_folder_says_what_is_wrong(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="one subfolder a class"):
        image_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="no image folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(InputError, match="9 x 8 pixels, and the teacher needs 8 x 8"):
        image_folder(write_folder(tmp_path / "size", ((8, 8), (9, 8))), (3, 8, 8))
    root = write_folder(tmp_path / "broken")
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="1.png cannot be read as an image"):
        image_folder(root, (3, 8, 8))
    with pytest.raises(InputError, match="held_out = 6 is out of range; allowed: 0 to 5"):
        image_folder(write_folder(tmp_path / "few"), (3, 8, 8), held_out=6)


def test_absent_data_and_impossible_requests_are_refused(tmp_path, data):
    with pytest.raises(InputError, match="set download to true"):
        cifar10(tmp_path)
    with pytest.raises(InputError, match="501 held_out images were asked for, and there are 500"):
        data.images("held_out", 501)
    with pytest.raises(InputError, match="split = 'test' is unknown; allowed: train, held_out"):
        data.images("test")


def test_teacher_samples_do_not_depend_on_batching(unet):
    a = teacher_samples(unet, 12, intervals=2, chunk=12)
    b = teacher_samples(unet, 12, intervals=2, chunk=5)
    assert a.shape == (1, 8, 8) and sorted(a.train_labels.tolist()) == sorted(i % 10 for i in range(12))
    # Batches of other sizes may round the last bit of a float otherwise: one grey level.
    assert (a.train.int() - b.train.int()).abs().max() <= 1 and len(a.held_out) == 0


# --- the UNet teacher


def test_unet_follows_the_protocol_with_any_batch_axes(unet):
    assert isinstance(unet, Teacher)
    x, t, c = batch(6)
    eps = unet.predict_noise(x, t, c)
    folded = unet.predict_noise(x.reshape(2, 3, 1, 8, 8), t.reshape(2, 3), c.reshape(2, 3))
    assert folded.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(folded.reshape(eps.shape), eps, atol=1e-5, rtol=1e-5)
    assert torch.equal(unet.null_condition(c), torch.full_like(c, 10))
    assert not torch.allclose(unet.predict_noise(x, t, unet.null_condition(c)), eps)
    assert torch.allclose(guided_noise(unet, x, t, c, 1.0), eps, atol=1e-5)


def test_velocity_becomes_noise_and_data_as_in_diffusers(unet):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
    x, t, c = batch()
    scheduler.set_timesteps(1000)
    v, eps = unet.velocity(x, t, c), unet.predict_noise(x, t, c)
    alpha, sigma = unet.schedule.alpha(t, x), unet.schedule.sigma(t, x)
    noise = torch.randn(x.shape)
    # diffusers counts timesteps from 0
    torch.testing.assert_close(alpha * noise - sigma * x, scheduler.get_velocity(x, noise, t - 1), atol=1e-5, rtol=1e-5)
    for i in range(len(x)):
        theirs = scheduler.step(v[i : i + 1], int(t[i]) - 1, x[i : i + 1]).pred_original_sample
        x0_hat = (x[i] - sigma[i] * eps[i]) / alpha[i]
        torch.testing.assert_close(x0_hat[None], theirs, atol=2e-4, rtol=2e-4)


def test_noise_is_exact_where_the_velocity_is(unet, monkeypatch):
    x_0, t, c = batch()
    noise = torch.randn(x_0.shape)
    x_t = unet.schedule.add_noise(x_0, noise, t)
    v = unet.schedule.alpha(t, x_0) * noise - unet.schedule.sigma(t, x_0) * x_0
    monkeypatch.setattr(unet, "velocity", lambda *_: v)
    torch.testing.assert_close(unet.predict_noise(x_t, t, c), noise, atol=1e-5, rtol=1e-5)


def test_the_network_sees_the_timestep_itself(unet, monkeypatch):
    seen = []
    monkeypatch.setattr(unet, "velocity", lambda x, t, c: seen.append(t) or x)
    solve(unet, batch()[0], 2, batch()[2], 1.0, "ddim", Grid(2))
    assert [int(t[0]) for t in seen] == [1000, 500]


def test_saved_teacher_loads_equal_and_half_precision_halves_the_file(unet, tmp_path):
    unet.save(tmp_path / "a", {"made": "here"})
    loaded = UNetTeacher.load(tmp_path / "a")
    assert all(torch.equal(p, q) for p, q in zip(unet.parameters(), loaded.parameters()))
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    unet.save(tmp_path / "b", dtype=torch.float16)
    half = UNetTeacher.load(tmp_path / "b")
    assert next(half.parameters()).dtype == torch.float32
    assert (tmp_path / "b/weights.safetensors").stat().st_size < 0.6 * (
        tmp_path / "a/weights.safetensors"
    ).stat().st_size
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "weights.safetensors"]


def test_an_altered_truncated_or_foreign_teacher_is_refused(unet, tmp_path):
    unet.save(tmp_path)
    weights, config = tmp_path / "weights.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (bytes(flipped), whole[:-100], b""):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match="altered or cut short"):
            UNetTeacher.load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="weights.safetensors does not exist"):
        UNetTeacher.load(tmp_path)
    weights.write_bytes(whole)
    record = json.loads(text)
    record["unet"]["widths"] = [16, 32]
    config.write_text(json.dumps(record))
    with pytest.raises(InputError, match="does not fit config.json"):
        UNetTeacher.load(tmp_path)
    config.write_text(text[:40])
    with pytest.raises(InputError, match="config.json is missing or broken"):
        UNetTeacher.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 9}, "image_size = 9 cannot be halved"),
        ({"widths": (16, 20)}, "multiple of groups = 8"),
        ({"attention": (True,)}, "same number of resolutions"),
        ({"num_classes": 0}, "num_classes = 0 is too small"),
        ({"head_width": 5}, "head_width = 5 must divide"),
    ],
)
def test_impossible_networks_are_refused(change, words):
    from dataclasses import replace

    with pytest.raises(InputError, match=words):
        replace(TINY, **change)


def test_a_class_out_of_range_is_refused(unet):
    unet.check_condition(torch.tensor([0, 9, 10]))
    for c in (11, -1):
        with pytest.raises(InputError, match=f"class {c} is out of range; allowed: 0 to 9"):
            unet.check_condition(torch.tensor([3, c]))


# --- training


def run(data, settings, checkpoint=None, stop=None):
    torch.manual_seed(1)
    teacher = UNetTeacher(TINY)
    for state in train_teacher(teacher, data, settings, checkpoint):
        if state.step == stop:
            break
    return state


def test_a_resumed_training_equals_an_undisturbed_one_bit_for_bit(data, tmp_path):
    settings = TeacherTraining(updates=6, batch=8, warmup=2)
    whole = run(data, settings)
    checkpoint = tmp_path / "checkpoint.safetensors"
    run(data, settings, stop=3).save(checkpoint)
    torch.randn(17)  # the global generator must not matter
    resumed = run(data, settings, checkpoint)
    assert resumed.step == 6 and resumed.loss == whole.loss
    for part in ("teacher", "ema"):
        a, b = getattr(whole, part).state_dict(), getattr(resumed, part).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(InputError, match="other settings"):
        run(data, TeacherTraining(updates=7, batch=8), checkpoint)


def test_training_lowers_the_loss_and_the_rate_follows_its_schedule(data):
    settings = TeacherTraining(updates=60, batch=32, warmup=5, learning_rate=3e-3)
    losses, rates = [], []
    torch.manual_seed(1)
    for state in train_teacher(UNetTeacher(TINY), data, settings):
        losses.append(float(state.loss))
        rates.append(state.learning_rate)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert rates[0] == pytest.approx(3e-3 / 6) and max(rates) == max(rates[4:8]) and rates[-1] < 1e-4
    assert not torch.equal(next(state.ema.parameters()), next(state.teacher.parameters()))


def test_training_stops_with_a_sentence_that_names_the_update(data):
    class Spoiled:
        shape, num_classes, calls = data.shape, 10, 0

        def draw(self, generator, size):
            self.calls += 1
            x, c = data.draw(generator, size)
            return (x * math.nan if self.calls >= 4 else x), c

    with pytest.raises(TrainingError, match="not finite at update 4; lower learning_rate"):
        run(Spoiled(), TeacherTraining(updates=30, batch=4))


def test_training_refuses_images_that_do_not_fit(data):
    with pytest.raises(InputError, match=r"shape \(1, 8, 8\), and the teacher needs \(3, 8, 8\)"):
        next(
            train_teacher(
                UNetTeacher(UNetConfig(8, 3, 10, (16,), (False,), layers=1, groups=8)), data, TeacherTraining()
            )
        )
    with pytest.raises(InputError, match="10 classes, and the teacher has 4"):
        next(
            train_teacher(
                UNetTeacher(UNetConfig(8, 1, 4, (16,), (False,), layers=1, groups=8)), data, TeacherTraining()
            )
        )
    for wrong in ({"updates": 0}, {"ema": 1.0}, {"label_dropout": -0.1}, {"seconds": 0.0}, {"learning_rate": math.nan}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            TeacherTraining(**wrong)


def test_a_time_budget_ends_the_training(data):
    state = run(data, TeacherTraining(seconds=0.5, batch=4, warmup=0))
    assert state.step >= 1 and state.elapsed >= 0.5


# --- quality


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((20000, 2))
    b = rng.standard_normal((20000, 2)) * [2, 1] + [3, 0]
    # |mu|^2 + sum (s_a - s_b)^2 = 9 + 1
    assert frechet(a, b) == pytest.approx(10, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert math.isnan(frechet(a * math.nan, b))


def test_kernel_distance_is_near_zero_for_equals_and_leaves_numpys_generator_alone():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1000, 8))
    np.random.seed(5)
    first = kernel_distance(a, b)
    after = np.random.rand()
    np.random.seed(5)
    assert after == np.random.rand() and first == kernel_distance(a, b)
    assert abs(first) < 0.05 < kernel_distance(a, b + 1)


def test_precision_and_recall_on_constructed_sets():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((300, 4)), rng.standard_normal((300, 4)) + 100
    both = np.concatenate([left, right])
    assert precision_recall(both, both) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)
    precision, recall = precision_recall(left, both)  # good samples of one half of the data
    assert precision == 1.0 and recall == 0.5
    precision, recall = precision_recall(both, left)  # covers the data, but half of it is wrong
    assert precision == 0.5 and recall == 1.0
    assert precision_recall(left * math.nan, left) == (0.0, 0.0)
    with pytest.raises(InputError, match="at least 5 samples"):
        precision_recall(left[:4], left)


def test_sharpness_sees_blur_and_noise():
    x = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    assert sharpness(x, x) == pytest.approx(1)
    assert sharpness(blurred, x) < 0.5 and sharpness(2 * x, x) == pytest.approx(4)


def test_classifier_learns_the_digits_and_keeps_its_accuracy_on_disk(data, tmp_path):
    model = train_classifier(data, updates=80, batch=64, width=16)
    assert model.accuracy > 0.85
    again = train_classifier(data, updates=3, batch=16, width=8)
    same = train_classifier(data, updates=3, batch=16, width=8)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), same.parameters()))
    model.save(tmp_path / "classifier.safetensors")
    loaded = Classifier.load(tmp_path / "classifier.safetensors")
    x, label = data.images("held_out")
    assert loaded.accuracy == model.accuracy == float((loaded.classify(x) == label).double().mean())
    np.testing.assert_array_equal(loaded.features(x), model.features(x))


def test_image_quality_ranks_real_images_above_noise(data, tmp_path):
    model = train_classifier(data, updates=80, batch=64, width=16)
    held_out, _ = data.images("held_out")
    quality = ImageQuality(model, model, held_out)
    x, c = data.images("train", 300)
    teacher_x = data.images("train")[0][300:600]
    good = quality.measure(x, c, teacher_x)
    bad = quality.measure(torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)), c, teacher_x)
    assert set(good) == set(quality.metrics) and quality.primary in quality.metrics
    assert all(math.isfinite(value) for value in good.values())
    for name, metric in quality.metrics.items():
        if name != "sharpness":
            assert (good[name] < bad[name]) == metric.lower_is_better, name
    assert good == quality.measure(x, c, teacher_x)  # features kept by content change nothing
    assert bad != quality.measure(x, c, teacher_x.flip(0) * 0.5)
    without = ImageQuality(model, model)
    assert math.isnan(without.measure(x, c, teacher_x)["fd_real"]) and "fd_real" in without.not_measured


def test_a_scipy_that_clean_fid_does_not_work_with_is_refused_at_once(data, monkeypatch):
    model = Classifier(data.shape, 10, width=16)
    ImageQuality(model, model)
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda A: A)  # as SciPy 1.18 has it
    with pytest.raises(InputError, match="clean-fid cannot compute Frechet distances with SciPy .*below 1.18"):
        ImageQuality(model, model)


def test_several_sets_may_be_measured_side_by_side(data, monkeypatch):
    model = Classifier(data.shape, 10, width=16).eval().requires_grad_(False)
    x, c = data.images("train", 300)
    sets = [x[:100], x[100:200], x[200:]]
    alone = ImageQuality(model, model, data.images("held_out")[0])
    assert alone.workers == 1  # few features: no process is started
    one_by_one = [alone.measure(part, c[:100], x[:100]) for part in sets]
    monkeypatch.setattr("dcm.image_quality.COSTLY", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    together = ImageQuality(model, model, data.images("held_out")[0])
    assert together.workers == 2
    assert list(in_threads(lambda part: together.measure(part, c[:100], x[:100]), sets, 2)) == one_by_one
    assert together._processes._max_workers == 2 and together._processes._processes  # Frechet distances came from there


def test_efficientnet_features_come_without_a_download_and_inception_is_not_fetched(monkeypatch, tmp_path):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = EfficientNetFeatures().features(x)
    assert features.shape == (3, 1280) and np.isfinite(features).all() and features.std(0).max() > 0.01
    monkeypatch.setattr("dcm.features.INCEPTION_FILE", tmp_path / "absent.pt")
    with pytest.raises(InputError, match="Inception's weights are not at"):
        InceptionFeatures()


def test_importing_the_package_does_not_import_diffusers():
    import subprocess
    import sys

    code = "import sys, dcm.teachers.unet, dcm.teacher_training, dcm.data, dcm.image_quality; print('diffusers' in sys.modules, 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]
