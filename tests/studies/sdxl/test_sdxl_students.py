"""Teacher and students of SDXL: adapters of one network."""

import gc
import math
from types import SimpleNamespace

import numpy as np
import pytest
import sdxl_dry_run
import tiny_sdxl
import torch
from sdxl_helpers import CPU, batch, trained

from dcm.horizon import Batch, Stage
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lora import TARGETS, LoRAStudents
from dcm.studies.sdxl import pipeline as sdxl_pipeline
from dcm.studies.sdxl import study as sdxl_study
from dcm.teacher import Teacher, guided_noise
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.training.settings import Settings
from dcm.training.update import Objective, Update


def test_the_teacher_is_the_pipelines_unet(study, pipe):
    assert isinstance(study.teacher, Teacher)
    x, t, c = batch(study)
    text, added = study.data.prompts.of(c, torch.float32)
    theirs = pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    ours = study.teacher.predict_noise(x, t, c)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert np.allclose(study.teacher.schedule.alpha_bar, pipe.scheduler.alphas_cumprod.numpy(), atol=1e-6)
    folded = study.teacher.predict_noise(x[None], t[None], c[None])
    assert torch.allclose(folded[0], ours, atol=1e-5)


def test_the_null_prompt_is_zero_with_the_same_size_ids(study, pipe):
    x, t, c = batch(study)
    null = study.teacher.null_condition(c)
    assert torch.equal(study.teacher.null_condition(null), null)
    text, added = study.data.prompts.of(null, torch.float32)
    assert not text.any() and not added["text_embeds"].any()
    assert torch.equal(added["time_ids"], study.data.prompts.of(c, torch.float32)[1]["time_ids"])
    theirs = pipe.unet(x, t, encoder_hidden_states=torch.zeros_like(text), added_cond_kwargs=added).sample
    assert torch.allclose(study.teacher.predict_noise(x, t, null), theirs, atol=1e-5)
    eps = study.teacher.predict_noise(x, t, c)
    assert not torch.allclose(eps, theirs, atol=1e-4)
    assert torch.allclose(guided_noise(study.teacher, x, t, c, 9.0), theirs + 9 * (eps - theirs), atol=1e-4)


def test_the_network_sees_the_timestep_itself(study, monkeypatch):
    seen = []
    monkeypatch.setattr(study.network, "in_chunks", lambda x, t, c: seen.append(t) or x)
    x, _, c = batch(study)
    solve(study.teacher, x, 2, c, 1.0, "ddim", Grid(2))
    assert [int(t[0]) for t in seen] == [1000, 500]


def test_adapters_cover_every_layer_of_the_list_and_start_as_the_teacher(study):
    students = LoRAStudents(study.network, [0, 1, 0], 2)
    x, t, c = batch(study)
    rows = [v.expand(3, *v.shape) for v in (x, t, c)]
    teacher = study.teacher.predict_noise(x, t, c)
    assert all(torch.allclose(own, teacher, atol=1e-6) for own in students(*rows))
    names = [{n: p for n, p in a.items()} for a in students.adapters]
    assert all(torch.equal(names[0][n], names[2][n]) for n in names[0])
    assert any(not torch.equal(names[0][n], names[1][n]) for n in names[0])
    layers = {n.rsplit("/", 1)[0].replace("/", ".") for n in names[0]}
    kinds = {"Linear", "Conv2d"}
    with torch.device("meta"):
        from diffusers import UNet2DConditionModel

        fresh = UNet2DConditionModel(**tiny_sdxl.UNET)
    for path, module in fresh.named_modules():
        expected = type(module).__name__ in kinds and any(path.endswith(f".{t}") for t in TARGETS)
        assert (path in layers) == expected, path
    used = {t for t in TARGETS if any(path.endswith(f".{t}") for path in layers)}
    assert used == set(TARGETS)
    assert all(p.dtype == torch.float32 for p in students.parameters())


def test_members_are_each_their_own_and_the_teacher_stays(study):
    x, t, c = batch(study)
    before = study.teacher.predict_noise(x, t, c)
    students = trained(study)
    rows = [v.expand(2, *v.shape) for v in (x, t, c)]
    both = students(*rows)
    assert not torch.allclose(both[0], both[1], atol=1e-3) and not torch.allclose(both[0], before, atol=1e-3)
    assert torch.equal(students(*(r[1:] for r in rows), members=slice(1, 2))[0], both[1])
    assert torch.equal(study.teacher.predict_noise(x, t, c), before)
    copy = LoRAStudents(study.network, [0, 1], 2)
    copy.load_state_dict(students.state_dict())
    assert torch.equal(copy(*rows), both) and not set(copy.names) & set(students.names)
    names = copy.names
    walk = study.network.unet.named_modules()  # it may not see modules change
    next(name for name, _ in walk if ".lora_A." in name)
    del copy
    gc.collect()
    assert [*walk]
    study.network.use(students.names[0])
    assert not set(names) & set(study.network.unet.peft_config) and study.network.in_use == students.names[0]
    assert torch.equal(students(*rows), both)


def gradients(students, study, **how):
    """Gradients of both members on one batch of four, by an update whose optimiser does nothing."""
    sdxl_study.ready_network(students, SimpleNamespace(**({"gradient_checkpointing": False, "microbatch": 0} | how)))
    x, t, c = (v.expand(2, *v.shape) for v in batch(study, 4))
    objective = Objective(lambda f, students, batch: torch.zeros_like(batch.x))
    idle = torch.optim.SGD(students.parameters(), lr=0.0)
    f = lambda students, *inputs, members: students(*inputs, members=members)
    update = Update(students, idle, Settings(updates=1, max_norm=1e9), f, objective=objective)
    update(Batch(x, t, c, x, t, 0, Stage(1, (1, 1), (slice(0, 2),), (), ())), 0.0)
    return [p.grad.clone() for p in students.parameters()]


def test_checkpointing_and_microbatches_change_memory_not_gradients(study):
    students = trained(study)
    plain = gradients(students, study)
    assert all(g.abs().max() > 0 for g in plain)
    for how in ({"gradient_checkpointing": True}, {"microbatch": 2}, {"gradient_checkpointing": True, "microbatch": 3}):
        for a, b in zip(plain, gradients(students, study, **how)):
            assert torch.allclose(a, b, atol=1e-6, rtol=1e-4), how


def test_the_loss_scale_of_float16_leaves_gradients_and_skips_what_overflows(study):
    students = trained(study)
    plain = gradients(students, study)
    assert students.clips_on_device and not students.scaled
    students.scaled = bool(students.scale.fill_(2.0**10).any())
    assert students.capturable and not students.clips_on_device  # its scale is read on the CPU, but not before
    for a, b in zip(plain, gradients(students, study)):
        assert torch.allclose(a, b, atol=1e-6, rtol=1e-4)
    next(students.adapters[1].parameters()).grad[0] = math.inf
    students.clip_gradients(1.0)
    assert students.scale.tolist() == [2.0**10, 2.0**9]
    assert all(p.grad is None for p in students.adapters[1].parameters())
    assert all(p.grad is not None for p in students.adapters[0].parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.06), ("fp16", 0.01)])
def test_sixteen_bits_round_what_32_bits_compute(precision, tolerance):
    """Teacher and gradients at most so far from those of the same weights in float32, relative to their norm."""
    dtype, config = sdxl_pipeline.PRECISIONS[precision], tiny_sdxl.UNET
    made = []
    for unet in (sdxl_dry_run.random_unet(config, CPU, dtype) for _ in range(2)):
        made.append(PromptedUNet(unet, sdxl_dry_run.random_prompts(config, 4), chunk=4))
    made[1].unet.float()
    x, t, c = (
        torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.arange(1, 1001, 300),
        torch.arange(4),
    )
    eps, grads = [], []
    for network in made:
        eps.append(SDXLTeacher(network, None, (4, 8, 8)).predict_noise(x, t, c))
        students = LoRAStudents(network, [0], 2)
        for p, g in zip(students.parameters(), range(10**6)):
            p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(g))
        students.backward(students(x[None], t[None], c[None]).square().mean()[None], slice(0, 1))
        students.clip_gradients(1e9)  # takes the scale of float16 out
        assert students.scale.item() == (2.0**16 if network.dtype == torch.float16 else 1)
        grads.append(torch.cat([p.grad.flatten() for p in students.parameters()]))
        assert grads[-1].dtype == eps[-1].dtype == torch.float32
    for low, full in (eps, grads):
        assert 0 < float((low - full).norm() / full.norm()) < tolerance
