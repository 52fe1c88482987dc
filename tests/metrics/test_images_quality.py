"""Features, distances and quality of images."""

import inspect
import math
import time
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch

from dcm.metrics.distances import (
    FeatureSet,
    frechet,
    kernel_distance,
    paired_error,
    precision_recall,
    radial_power,
    sharpness,
)
from dcm.metrics.encoders import EfficientNetFeatures, Encoder, InceptionFeatures
from dcm.metrics.features import Classifier, PixelFeatures, train_classifier
from dcm.metrics.images import ImageQuality
from dcm.metrics.metric import ENCODERS
from dcm.studies.images.study import SHIPPED, load_encoder
from dcm.support.errors import InputError


def normal(*shape: int, seed: int = 0, scale=1.0, shift=0.0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    return FeatureSet(torch.from_numpy(rng.standard_normal(shape) * scale + shift))


def test_frechet_distance_of_known_gaussians():
    a, b = normal(20000, 2), normal(20000, 2, seed=1, scale=[2, 1], shift=[3, 0])
    # |mu|^2 + sum (s_a - s_b)^2 = 9 + 1
    assert frechet(a, b) == pytest.approx(10, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert math.isnan(frechet(FeatureSet(a.x * math.nan), b)) and math.isnan(frechet(FeatureSet(a.x[:1]), b))


@pytest.mark.skipif(
    "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters, reason="clean-fid fails with SciPy 1.18"
)
@pytest.mark.parametrize("count", [640, 50])  # more and fewer samples than features
def test_frechet_distance_is_clean_fids(data, count):
    """On real images: features of the shipped networks, and pixels, whose covariance has no full rank."""
    from cleanfid.fid import fid_from_feats

    x = data.images("train")[0][: 2 * count]
    for encoder in (
        Classifier.load(SHIPPED / "digits_classifier/weights.safetensors"),
        load_encoder("digits"),
        PixelFeatures(),
    ):
        a, b = encoder.features(x).split(count)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = float(np.real(fid_from_feats(a.numpy(), b.numpy())))
        assert frechet(FeatureSet(a), FeatureSet(b)) == pytest.approx(theirs, rel=1e-6), encoder.name


def test_frechet_distance_is_below_the_paired_error(data):
    """Real samples: images, and the same blurred a little or a lot; equal for a shift, which no other pairing undoes."""
    x = data.images("train", 600)[0]
    soft = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    for encoder in (
        Classifier.load(SHIPPED / "digits_classifier/weights.safetensors"),
        load_encoder("digits"),
        PixelFeatures(),
    ):
        for share in (0.1, 0.5, 1):
            a, b = (FeatureSet(encoder.features(v)) for v in (torch.lerp(x, soft, share), x))
            assert 0 < frechet(a, b) < paired_error(a, b) * (1 + 1 / 599), encoder.name
    moved = FeatureSet(b.x + 0.5)
    assert frechet(moved, b) == pytest.approx(paired_error(moved, b)) == pytest.approx(64 * 0.25)


def test_paired_error_needs_the_pairs_and_frechet_does_not():
    a, b = normal(500, 4), normal(500, 4, seed=1)
    shuffled = FeatureSet(a.x.flip(0))
    assert paired_error(a, a) == 0 < 7 < paired_error(a, shuffled) < 9  # 2 x 4 dimensions
    assert frechet(shuffled, b) == pytest.approx(frechet(a, b))


def test_kernel_distance_is_unbiased_also_for_pairs(monkeypatch):
    """Zero on average for equals, whether or not their rows belong together, and clean-fid's where pairs do not matter."""
    found = [kernel_distance(normal(200, 8, seed=s), normal(200, 8, seed=s + 100)) for s in range(30)]
    paired = [
        kernel_distance(a := normal(200, 8, seed=s), FeatureSet(a.x + 0.5 * normal(200, 8, seed=s + 100).x))
        for s in range(30)
    ]
    wider = [kernel_distance(normal(200, 8, seed=s), normal(200, 8, seed=s + 100, scale=1.25**0.5)) for s in range(30)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 30**0.5
    assert np.mean(paired) == pytest.approx(np.mean(wider), abs=3 * np.std(wider) / 30**0.5)
    a, b = normal(300, 8), normal(300, 8, seed=1, shift=1)
    from cleanfid.fid import kernel_distance as theirs

    assert kernel_distance(a, a) == 0
    assert kernel_distance(a, b) == pytest.approx(
        theirs(a.x.numpy(), b.x.numpy(), num_subsets=1, max_subset_size=300), rel=0.01
    )
    whole = kernel_distance(a, b)
    monkeypatch.setattr("dcm.metrics.distances.ROWS", 70)
    assert kernel_distance(a, b) == pytest.approx(whole) and math.isnan(kernel_distance(FeatureSet(a.x * math.nan), b))


def test_precision_and_recall_on_constructed_sets():
    left, right = normal(300, 4), normal(300, 4, seed=1, shift=100)
    both = FeatureSet(torch.cat([left.x, right.x]))
    assert precision_recall(both, both) == (1.0, 1.0)
    assert precision_recall(left, right) == (0.0, 0.0)
    precision, recall = precision_recall(left, both)  # good samples of one half of the data
    assert precision == 1.0 and recall == 0.5
    precision, recall = precision_recall(both, left)  # covers the data, but half of it is wrong
    assert precision == 0.5 and recall == 1.0
    assert precision_recall(FeatureSet(left.x * math.nan), left) == (0.0, 0.0)


def test_sharpness_sees_blur_and_noise():
    x = torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
    power = radial_power(x)
    assert power.shape == (4,) and sharpness(power, power) == pytest.approx(1)
    assert sharpness(radial_power(blurred), power) < 0.5 and sharpness(radial_power(2 * x), power) == pytest.approx(4)


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
    assert torch.equal(loaded.features(x), model.features(x))


def test_image_quality_ranks_real_images_above_noise(data, tmp_path):
    model = train_classifier(data, updates=80, batch=64, width=16)
    held_out, _ = data.images("held_out")
    quality = ImageQuality(model, model, held_out, load_encoder("digits"))
    assert {e.name: ([*read][0], [*read][1], [*read][-1]) for e, read in quality.views} == ENCODERS["digits"]
    x, c = data.images("train", 300)
    teacher_x = data.images("train")[0][300:600]
    good = quality.measure(x, c, teacher_x)
    bad = quality.measure(torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)), c, teacher_x)
    assert set(good) == set(quality.metrics) and quality.primary in quality.metrics
    assert all(math.isfinite(value) for value in good.values())
    for name, metric in quality.metrics.items():
        if name != "sharpness" and not name.startswith("paired"):  # these images are no pairs
            assert (good[name] < bad[name]) == metric.lower_is_better, name
    assert good == quality.measure(x, c, teacher_x)  # features that were kept change nothing
    assert bad != quality.measure(x, c, teacher_x.flip(0) * 0.5)
    without = ImageQuality(model, model)
    assert math.isnan(without.measure(x, c, teacher_x)["fd_real"]) and "fd_real" in without.note


@pytest.mark.parametrize(("side", "size"), [(8, 224), (32, 224), (32, 299), (300, 224)])
def test_images_are_resized_as_clean_fid_does_it(side, size):
    from cleanfid.resize import make_resizer

    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    encoder = Encoder(torch.nn.Identity(), "cpu")
    encoder.size = size
    theirs = make_resizer("PIL", False, "bicubic", (size, size))
    for image, own in zip(x, encoder.resized(x)):
        levels = ((image + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(own.permute(1, 2, 0), theirs(levels), atol=0.005)
    grey = encoder.resized(x[:, :1])
    assert grey.shape == (2, 3, size, size) and torch.equal(grey[:, 0], grey[:, 2])


def test_efficientnet_features_come_without_a_download_and_inception_is_not_fetched(monkeypatch, tmp_path):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = EfficientNetFeatures().features(x)
    assert features.shape == (3, 1280) and features.isfinite().all() and features.std(0).max() > 0.01
    monkeypatch.setattr("dcm.metrics.encoders.INCEPTION_FILE", tmp_path / "absent.pt")
    with pytest.raises(InputError, match="Inception's weights are not at"):
        InceptionFeatures()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_measures_what_the_cpu_does_and_large_sets_in_seconds(data):
    x, c = data.images("train", 600)
    found = []
    for device in ("cpu", "cuda"):
        model = Classifier.load(SHIPPED / "digits_classifier/weights.safetensors").to(device)
        real = data.images("held_out")[0].to(device)
        quality = ImageQuality(model, model, real, load_encoder("digits").to(device))
        found.append(quality.measure(x[:300].to(device), c[:300].to(device), x[300:].to(device)))
    assert found[1] == pytest.approx(found[0], rel=0.02, abs=0.05)  # convolutions in TF32
    x = torch.randn(2, 10_000, 1280, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    frechet(*map(FeatureSet, x[:, :2000]))  # the libraries are loaded by now
    torch.cuda.synchronize()
    began = time.monotonic()
    own, teacher = map(FeatureSet, x)
    frechet(own, teacher), kernel_distance(own, teacher), precision_recall(own, teacher), paired_error(own, teacher)
    assert time.monotonic() - began < 10


def test_importing_the_package_does_not_import_diffusers():
    import subprocess
    import sys

    code = "import sys, dcm.teachers.unet, dcm.teachers.unet_training, dcm.data.images, dcm.metrics.images; print('diffusers' in sys.modules, 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == [
        "False",
        "False",
    ]
