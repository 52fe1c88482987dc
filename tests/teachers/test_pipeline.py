"""A diffusers pipeline's folder as teacher: its own sampler's ODE, and what is refused."""

import json
import shutil
from copy import deepcopy

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tiny_pipeline import saved, tiny_unet

from dcm.consistency import ConsistencyFunction
from dcm.data.images import digits
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import solve
from dcm.students.networks import UNetStudent
from dcm.support.errors import InputError
from dcm.teacher import Teacher, guided_noise
from dcm.teachers.pipeline import read_pipeline
from dcm.teachers.unet import UNetTeacher


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("classes", [None, 3])
def test_our_ddim_is_diffusers_own(prediction, classes, tmp_path):
    """Their sampler on their network, at its timesteps 999, 899, ..: our t - 1. A shift by one is seen in the third digit."""
    unet = tiny_unet(num_class_embeds=classes)
    folder = saved(tmp_path / "p", unet, prediction_type=prediction, beta_schedule="scaled_linear")
    teacher = read_pipeline(folder)
    x, c = torch.randn(3, 1, 8, 8), torch.arange(3)
    theirs = DDIMScheduler.from_pretrained(
        folder / "scheduler", timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(10)
    z = x
    for t in theirs.timesteps:
        out = unet(z, t, class_labels=c if classes else None).sample.detach()
        z = theirs.step(out, t, z).prev_sample
    ours = lambda: solve(teacher, x, 10, c, 1.0, "ddim", Grid(10)).x  # noqa: E731
    assert isinstance(teacher, Teacher) and teacher.num_classes == (classes or 1)
    torch.testing.assert_close(ours(), z, atol=2e-4, rtol=2e-4)
    shifted = deepcopy(teacher)
    object.__setattr__(shifted.config, "offset", 0)
    assert (solve(shifted, x, 10, c, 1.0, "ddim", Grid(10)).x - z).abs().max() > 1e-3


def test_the_schedule_is_the_schedulers_own(tmp_path):
    own = DDPMScheduler(num_train_timesteps=400, beta_start=0.002, beta_end=0.03, beta_schedule="sigmoid")
    teacher = read_pipeline(saved(tmp_path / "p", scheduler=own))
    assert teacher.schedule.T == 400
    torch.testing.assert_close(torch.tensor(teacher.schedule.alpha_bar), own.alphas_cumprod.double(), rtol=1e-4, atol=0)


def test_guidance_needs_a_null_class(tmp_path):
    folder = saved(tmp_path / "p", tiny_unet(num_class_embeds=3))
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([500, 900]), torch.tensor([0, 1])
    with pytest.raises(InputError, match="without a null class.*; allowed: guidance 1, or null_class = true"):
        guided_noise(read_pipeline(folder), x, t, c, 2.0)
    teacher = read_pipeline(folder, null_class=True)
    assert teacher.num_classes == 2 and teacher.null_condition(c).tolist() == [2, 2]
    unguided, null = teacher.predict_noise(x, t, c), teacher.predict_noise(x, t, torch.full_like(c, 2))
    torch.testing.assert_close(guided_noise(teacher, x, t, c, 2.0), 2 * unguided - null)


def test_what_is_saved_loads_equal_and_the_first_layout_on_the_hub_is_read(tmp_path):
    folder = saved(tmp_path / "p", tiny_unet(num_class_embeds=3, dropout=0.5))
    teacher = read_pipeline(folder, null_class=True)
    teacher.save(tmp_path / "own")
    flat = tmp_path / "flat"
    shutil.copytree(folder / "unet", flat)
    shutil.copy(folder / "scheduler/scheduler_config.json", flat)
    shutil.copy(folder / "model_index.json", flat)
    x, t, c = torch.randn(2, 1, 8, 8), torch.tensor([1, 1000]), torch.tensor([0, 1])
    for other in (UNetTeacher.load(tmp_path / "own"), read_pipeline(flat, null_class=True)):
        assert other.config == teacher.config and torch.equal(other.predict_noise(x, t, c), teacher.predict_noise(x, t, c))
    student = UNetStudent(teacher.config).train()
    student.start_as(teacher.unet)
    assert torch.equal(student(x, t, c), teacher.output(x, t, c)), "and has no dropout"


def edited(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def reaching_one():
    return DDPMScheduler(rescale_betas_zero_snr=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f.mkdir() or f, "has no model_index.json that can be read; allowed: a pipeline of a UNet2DModel"),
        (lambda f: edited(saved(f), "model_index.json", text_encoder=["transformers", "CLIPTextModel"]),
         r"holds a pipeline of .*text_encoder \(CLIPTextModel\).*; allowed: .*; with text, SDXL alone, as the study sdxl"),
        (lambda f: edited(saved(f), "model_index.json", unet=["diffusers", "UNet2DConditionModel"]), "UNet2DConditionModel.*allowed"),
        (lambda f: edited(saved(f), "model_index.json", vqvae=["diffusers", "VQModel"]), r"vqvae \(VQModel\); allowed"),
        (lambda f: saved(f, tiny_unet(out_channels=2)), "has a UNet with 1 channels in and 2 out; allowed: 1 or 3 in, and as many"),
        (lambda f: saved(f, tiny_unet(channels=4)), "with 4 channels in and 4 out; allowed: 1 or 3 in"),
        (lambda f: saved(f, tiny_unet(class_embed_type="timestep")), "class_embed_type timestep; allowed: classes by num_class_embeds"),
        (lambda f: saved(f, tiny_unet(size=None)), "without sample_size; allowed"),
        (lambda f: saved(f, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()),
         "has a FlowMatchEulerDiscreteScheduler, which has no betas; allowed: one that has, such as DDPMScheduler"),
        (lambda f: saved(f, scheduler=reaching_one()), "whose betas reach 1.*allowed: rescale_betas_zero_snr = false"),
        (lambda f: edited(saved(f), "scheduler/scheduler_config.json", prediction_type="flow_prediction"),
         "predicts flow_prediction; allowed: epsilon, v_prediction, sample"),
        (lambda f: edited(saved(f), "unet/config.json", block_out_channels=[8, 24]), "cannot be read as a pipeline of scheduler"),
        (lambda f: [saved(f), (f / "unet/diffusion_pytorch_model.safetensors").unlink()] and f, "cannot be read as a pipeline"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_teacher_is_refused_in_one_sentence(make, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        read_pipeline(make(tmp_path / "p"))
    assert "\n" not in str(error.value)


def test_a_network_without_classes_has_no_null_class(tmp_path):
    with pytest.raises(InputError, match="a UNet of no classes, .* allowed: null_class = false"):
        read_pipeline(saved(tmp_path / "p"), null_class=True)


def test_a_students_first_answer_does_not_explode_where_alpha_is_small():
    """A noise-predicting teacher on DDPM's linear schedule, trained here a little: alpha_T is 1/157, and so much its error grows.

    How students of a better one fare: benchmarks/small_alpha.py.
    """
    unet, scheduler, data = tiny_unet(seed=1), DDPMScheduler(), digits()
    optimizer, g = torch.optim.Adam(unet.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(60):
        x, _ = data.draw(g, 16)
        noise, t = torch.randn(x.shape, generator=g), torch.randint(0, 1000, (16,), generator=g)
        loss = (unet(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule = NoiseSchedule.from_betas(scheduler.betas)
    network = lambda x, t, c: unet(x, t - 1).sample  # noqa: E731
    x_0, t = data.images("held_out", 64)[0], torch.full((64,), 1000)
    x = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=g), t)
    found = {a: ConsistencyFunction(schedule, prediction="epsilon", least_alpha=a)(network, x, t, t) for a in (0.0, 0.1)}
    error = {a: float((estimate - x_0).square().mean().detach()) for a, estimate in found.items()}
    assert float(loss.detach()) < 0.6 and error[0.0] > 200 and error[0.0] > 100 * error[0.1]
    # The gradient that training begins with is as much smaller.
    size = {a: sum(float(w.norm()) for w in torch.autograd.grad(y.square().mean(), list(unet.parameters()))) for a, y in found.items()}
    assert size[0.0] > 100 * size[0.1]


def test_the_students_estimate_is_exact_down_to_the_least_alpha():
    schedule = NoiseSchedule.from_betas(DDPMScheduler().betas)
    f = ConsistencyFunction(schedule, prediction="epsilon")
    t = torch.arange(1, 1001)
    x_0, noise = torch.rand(1000, 3) * 2 - 1, torch.randn(1000, 3)
    x = schedule.add_noise(x_0.double(), noise.double(), t)
    alpha = schedule.alpha(t, x)
    exact, found = alpha[:, 0] >= f.least_alpha, f.denoise(noise.double(), x, t)
    assert 600 < int(exact.sum()) < 700, "so it is the last third of this schedule that is changed"
    torch.testing.assert_close(found[exact], x_0[exact].double(), atol=1e-9, rtol=0)
    share = alpha / f.least_alpha
    expected = alpha * x + share * (x_0 - alpha * x)  # drawn towards alpha x
    torch.testing.assert_close(found[~exact], expected[~exact], atol=1e-9, rtol=0)
