"""The UNet teacher and its training."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_unet import TINY

from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.support.errors import InputError, TrainingError
from dcm.teacher import Teacher, guided_noise
from dcm.teachers.unet import UNetTeacher
from dcm.teachers.unet_training import TeacherTraining, train_teacher


def batch(size=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 1, 8, 8, generator=g)
    return x, torch.randint(1, 1001, (size,), generator=g), torch.randint(0, 10, (size,), generator=g)


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
    v, eps = unet.output(x, t, c), unet.predict_noise(x, t, c)
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
    monkeypatch.setattr(unet, "output", lambda *_: v)
    torch.testing.assert_close(unet.predict_noise(x_t, t, c), noise, atol=1e-5, rtol=1e-5)


def test_the_network_sees_the_timestep_itself(unet, monkeypatch):
    seen = []
    monkeypatch.setattr(unet, "output", lambda x, t, c: seen.append(t) or x)
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
        with pytest.raises(InputError, match="is not the file it should be: its SHA-256"):
            UNetTeacher.load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="weights.safetensors is missing"):
        UNetTeacher.load(tmp_path)
    weights.write_bytes(whole)
    record = json.loads(text)
    record["unet"]["widths"] = [16, 32]
    config.write_text(json.dumps(record))
    with pytest.raises(InputError, match="does not fit config.json"):
        UNetTeacher.load(tmp_path)
    record["unet"]["groups"] = 3  # divides no width
    config.write_text(json.dumps(record))
    with pytest.raises(InputError, match="does not fit config.json"):
        UNetTeacher.load(tmp_path)
    record["unet"]["unknown"] = 3
    config.write_text(json.dumps(record))
    with pytest.raises(InputError, match="does not fit config.json.*unknown"):
        UNetTeacher.load(tmp_path)
    config.write_text(text[:40])
    with pytest.raises(InputError, match="config.json is damaged"):
        UNetTeacher.load(tmp_path)


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
    with pytest.raises(InputError, match="is from other settings .*'updates': 6"):
        run(data, TeacherTraining(updates=7, batch=8), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    assert run(data, settings, checkpoint).loss == whole.loss  # a damaged one is not gone on with


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
        calls = 0

        def draw(self, generator, size):
            self.calls += 1
            x, c = data.draw(generator, size)
            return (x * math.nan if self.calls >= 4 else x), c

    with pytest.raises(TrainingError, match="not finite at update 4; lower learning_rate .* No checkpoint was written before"):
        run(Spoiled(), TeacherTraining(updates=30, batch=4))
