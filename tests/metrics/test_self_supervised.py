"""The encoder that is trained without labels: its views, its training, its file."""

import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contrastive import Contrast, Recipe, Views, knn_accuracy, linear_accuracy, train_encoder
from PIL import Image

from dcm.metrics.features import SelfSupervised
from dcm.support.errors import InputError, TrainingError

SCRIPT = Path(__file__).parents[2] / "weights/train_self_supervised.py"
TINY = Recipe(widths=(8, 16), batch=64, lr=0.1, warmup=2, head=16, projection=8, contrast=True)


def drawn(views: Views, x: torch.Tensor, size: int = 8) -> torch.Tensor:
    return views.draw(x, size, torch.Generator().manual_seed(0))


def test_views_that_change_nothing_are_the_images():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    same = drawn(Views(area=1, flip=False, jitter=0, grey=0), x)
    # A crop of the whole image may still be stretched by its aspect: a third at most, cut off at the image's edges.
    assert same.shape == x.shape
    assert torch.allclose(Views(jitter=0, grey=0)._recoloured(x, torch.Generator().manual_seed(0)), x, atol=1e-3)
    assert torch.allclose(
        drawn(Views(area=1, flip=False, jitter=0, grey=0), torch.full_like(x, 0.3)), torch.full_like(x, 0.3), atol=1e-3
    )


def test_each_view_has_colours_of_its_own():
    x = torch.rand(200, 3, 1, 1, generator=torch.Generator().manual_seed(1)).expand(-1, -1, 8, 8)
    grey = drawn(Views(grey=1), x)
    assert torch.allclose(grey[:, 0], grey[:, 1], atol=1e-3) and torch.allclose(grey[:, 1], grey[:, 2], atol=1e-3)
    mixed = drawn(Views(jitter=0, grey=0.2), x)
    coloured = (mixed[:, 0] - mixed[:, 1]).abs().amax((1, 2)) > 1e-3
    assert 0.7 < coloured.float().mean() < 0.9
    changed = (drawn(Views(grey=0), x) - x).abs().amax((1, 2, 3)) > 2e-3
    assert 0.7 < changed.float().mean() < 0.9
    # a hue turns: luma stays while the colours change
    hue = Views(jitter=1, grey=0, strength=(0, 0, 0, 0.1))._recoloured(x, torch.Generator().manual_seed(0))
    luma = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    assert torch.allclose((hue * luma).sum(1), (x * luma).sum(1), atol=1e-3) and (hue - x).abs().max() > 0.1


def test_crops_show_parts_mirrored_or_not():
    """On a ramp from left to right a crop's mean slope is its width, and its sign tells whether it was mirrored."""
    x = torch.linspace(0, 1, 16).expand(300, 1, 16, 16)
    slope = (
        (drawn(Views(jitter=0, grey=0), x)[..., -2] - drawn(Views(jitter=0, grey=0), x)[..., 1]).mean((1, 2)) * 8 / 5
    )
    assert 0.4 < (slope < 0).float().mean() < 0.6
    assert 0.22 < slope.abs().min() < 0.4 and slope.abs().max() > 0.95  # sqrt(0.08 * 3 / 4) = 0.24
    assert (drawn(Views(flip=False, jitter=0, grey=0), x).diff(dim=-1) > -1e-3).all()
    turned = drawn(Views(area=1, flip=False, jitter=0, grey=0, rotation=30), x)
    assert turned.diff(dim=-2).abs().max() > 0.02 > drawn(Views(area=1, jitter=0, grey=0), x).diff(dim=-2).abs().max()


def test_the_loss_is_least_where_views_know_each_other():
    model = Contrast(TINY, 1)
    k = torch.eye(8).repeat(2, 1)
    crossed = torch.cat([torch.eye(8).roll(1, 0)] * 2)
    assert model.loss(k, k) < 0.1 < 2 < model.loss(crossed, k)
    # the first half's predictions are compared with the second half's projections, not with their own
    assert model.loss(torch.cat([torch.eye(8), crossed[:8]]), torch.cat([crossed[:8], torch.eye(8)])) < 0.1


def test_training_lowers_the_loss_and_averages_the_weights(data):
    losses, first = [], None
    for state in train_encoder(data.train, TINY, epochs=4, peak=16):
        first = first if first is not None else state.model.averaged[0][0].weight.clone()
        losses.append(float(state.loss))
    assert state.updates == math.ceil(4 * len(data.train) / 64) and state.epochs == pytest.approx(4, abs=0.05)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) - 0.3
    assert not torch.equal(first, state.model.averaged[0][0].weight)
    assert not any(
        p.requires_grad for p in state.model.averaged.parameters()
    )  # else its history grows with each update
    assert not torch.equal(state.model.online[0][0].weight, state.model.averaged[0][0].weight)
    encoder = state.model.encoder()
    x = data.images("held_out", 50)[0]
    assert torch.equal(encoder.features(x), state.model.averaged[0].eval()(x).double())
    again = [float(s.loss) for s, _ in zip(train_encoder(data.train, TINY, epochs=4, peak=16), range(3))]
    assert again == losses[:3]  # every draw hangs on the seed alone


def test_a_time_budget_ends_the_training_and_bad_rates_are_told(data):
    *_, state = train_encoder(data.train, TINY, seconds=2, peak=16)
    assert 1 <= state.progress < 1.5 and 2 <= state.seconds < 3 and state.updates > 5
    with pytest.raises(TrainingError, match="lower its lr"):
        list(train_encoder(data.train[:64] * float("nan"), TINY, epochs=250))


def test_accuracies_are_those_of_separable_and_of_mixed_classes():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    x = 4 * torch.eye(3)[labels] + 0.3 * torch.randn(600, 3, generator=g)
    sets = x[:500], labels[:500], x[500:], labels[500:]
    assert knn_accuracy(*sets, k=20) == linear_accuracy(*sets) == 1
    noise = torch.randn(600, 3, generator=g)
    assert 0.15 < knn_accuracy(noise[:500], labels[:500], noise[500:], labels[500:]) < 0.5
    assert 0.15 < linear_accuracy(noise[:500], labels[:500], noise[500:], labels[500:]) < 0.5


def run_script(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_the_script_trains_on_a_folder_and_its_encoder_is_read_and_checked(monkeypatch, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("bright", 190)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(40):
            pixels = (level + rng.normal(0, 30, (32, 32, 3))).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    out = tmp_path / "encoder"
    run_script(
        monkeypatch, "--images", str(tmp_path / "images"), "--out", str(out), "--epochs", "2", "--batch", "16", "--held-out", "20",
        "--widths", "8", "8", "8", "8", "--head", "16", "--device", "cpu",
    )  # fmt: skip
    about = json.loads((out / "config.json").read_text())
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert about["training"]["finished"] and about["training"]["images"] == 60 and about["network"]["widths"] == [8] * 4
    assert (
        set(about["accuracy"]) == {"kNN, k 200", "kNN, k 20", "linear"}
        and last["linear"] == about["accuracy"]["linear"]
    )
    encoder = SelfSupervised.load(out)
    x = torch.rand(5, 3, 32, 32) * 2 - 1
    assert encoder.features(x).shape == (5, encoder.hidden) == (5, 8) and encoder.accuracy == about["accuracy"]
    bytes_ = bytearray((out / "weights.safetensors").read_bytes())
    bytes_[-5] ^= 1
    (out / "weights.safetensors").write_bytes(bytes_)
    with pytest.raises(InputError, match="is not the file it should be"):
        SelfSupervised.load(out)
    (out / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="weights.safetensors is missing; restore it"):
        SelfSupervised.load(out)


@pytest.mark.parametrize(("study", "row"), [("digits", "digits"), ("cifar10", "CIFAR-10")])
def test_stated_accuracies_are_those_of_the_shipped_encoders(study, row):
    [line] = [x for x in (SCRIPT.parent / "README.md").read_text().splitlines() if x.startswith(f"| {row} |")]
    accuracy = SelfSupervised.load(SCRIPT.parent / f"{study}_encoder").accuracy
    stated = [f"{100 * accuracy[name]:.1f} %" for name in ("kNN, k 20", "kNN, k 200", "linear")]
    assert [cell.strip() for cell in line.split("|")][2:5] == stated
