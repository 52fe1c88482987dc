"""Features, distances and quality of images."""

import math

import numpy as np
import pytest
import torch

from dcm.metrics.distances import frechet, kernel_distance, precision_recall, sharpness
from dcm.metrics.features import Classifier, EfficientNetFeatures, InceptionFeatures, train_classifier
from dcm.metrics.images import ImageQuality
from dcm.support.errors import InputError
from dcm.support.processes import in_threads


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
    monkeypatch.setattr("dcm.metrics.images.COSTLY", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    together = ImageQuality(model, model, data.images("held_out")[0])
    assert together.workers == 2
    assert list(in_threads(lambda part: together.measure(part, c[:100], x[:100]), sets, 2)) == one_by_one
    assert together._processes._max_workers == 2 and together._processes._processes  # Frechet distances came from there


def test_efficientnet_features_come_without_a_download_and_inception_is_not_fetched(monkeypatch, tmp_path):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = EfficientNetFeatures().features(x)
    assert features.shape == (3, 1280) and np.isfinite(features).all() and features.std(0).max() > 0.01
    monkeypatch.setattr("dcm.metrics.features.INCEPTION_FILE", tmp_path / "absent.pt")
    with pytest.raises(InputError, match="Inception's weights are not at"):
        InceptionFeatures()


def test_importing_the_package_does_not_import_diffusers():
    import subprocess
    import sys

    code = "import sys, dcm.teachers.unet, dcm.teachers.unet_training, dcm.data.images, dcm.metrics.images; print('diffusers' in sys.modules, 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]
