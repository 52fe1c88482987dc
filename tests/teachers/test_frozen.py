"""The teacher's frozen copy: what it computes is what the network computes, and what it shares and leaves out."""

import math

import pytest
import tiny_sdxl
import torch
from random_sdxl import SDXL_UNET, RandomLatents, random_prompts, random_unet
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from dcm.horizon import Group
from dcm.pairs import Pairs
from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import solve
from dcm.students.lora import LoRAStudents
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.teacher import guided_noise
from dcm.teachers import frozen
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.teachers.unet import UNetConfig, UNetTeacher
from dcm.training.run import train_group

CPU = torch.device("cpu")


def unet_weights(unet):
    """Random biases too: as made, those of attention's outputs could hide what is left out."""
    g = torch.Generator().manual_seed(1)
    for p in unet.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=g)
    return unet


@pytest.fixture
def sdxl():
    network = PromptedUNet(
        unet_weights(random_unet(tiny_sdxl.UNET, CPU, torch.float32)), random_prompts(tiny_sdxl.UNET, 6), chunk=4
    )
    return SDXLTeacher(network, NoiseSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000)), (4, 8, 8))


@pytest.fixture
def image_teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UNetConfig(8, 1, 10, widths=(16, 32), attention=(False, True), layers=1, groups=8, head_width=16)
        return UNetTeacher(config).eval().requires_grad_(False)


def inputs(size=5):
    g = torch.Generator().manual_seed(0)
    return torch.randn(size, 4, 8, 8, generator=g), torch.randint(1, 1001, (size,), generator=g), torch.arange(size)


@pytest.mark.parametrize("guidance", [1, 9.0, torch.tensor([1.0, 2.0, 3.0, 9.0, 0.0])])
def test_the_copy_predicts_what_the_network_does_and_sees_no_adapter(sdxl, guidance):
    """Guided or not, with a student's adapter in the network and in use."""
    x, t, c = inputs()
    plain = guided_noise(sdxl, x, t, c, guidance)
    students = LoRAStudents(sdxl.network, [0], 2)
    for p in students.parameters():
        p.data += 0.1
    sdxl.compile_for(5 if isinstance(guidance, int) else 10, compile="no")
    sdxl.network.use(students.names[0])
    calls = []
    sdxl._fast.register_forward_hook(lambda *_: calls.append(1))
    fast = guided_noise(sdxl, x, t, c, guidance)
    assert torch.allclose(plain, fast, atol=1e-4 * float(plain.std())) and calls
    assert sdxl.network.in_use == students.names[0]  # the student's, untouched


def test_empty_prompts_are_not_computed(sdxl):
    """The cross-attentions see the rows with a prompt alone."""
    x, t, c = inputs()
    sdxl.compile_for(10, compile="no")
    rows = []
    attentions = [m for name, m in sdxl._fast.named_modules() if name.endswith("attn2")]
    for attn in attentions:
        attn.to_q.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    guided_noise(sdxl, x, t, c, 9.0)
    assert rows == [5] * len(attentions) and len(rows) > 2


def test_only_convolutions_are_copied(sdxl):
    """Linear layers lie in memory once; forgetting the copy gives the network's answer again."""
    sdxl.compile_for(4, compile="no")
    own = {p.data_ptr() for p in sdxl.network.unet.parameters()}
    for name, p in sdxl._fast.named_parameters():
        assert (p.data_ptr() in own) == (p.ndim < 4), name
    sdxl.forget()
    assert sdxl._fast is None and sdxl.predict_noise(*inputs(4)).shape == (4, 4, 8, 8)


@pytest.mark.parametrize("w", [1.0, 9.0])
def test_targets_in_flight_by_the_copy_are_those_of_plain_solving(sdxl, w):
    group = Group("ddim", 4, (w,), (1, 4), (0,))
    plain = [b for _, b in Pairs(sdxl, RandomLatents(sdxl.shape, 6), group, 4).between(0, 3)]
    sdxl.compile_for(3 if w == 1 else 6, compile="no")
    flying = Pairs(sdxl, RandomLatents(sdxl.shape, 6), group, 4, solves_in_flight=3)
    for a, (_, b) in zip(plain, flying.between(0, 3)):
        assert torch.allclose(a.x_hat, b.x_hat, atol=1e-4 * float(a.x_hat.std()))


def test_repeated_blocks_are_compiled_once():
    """SDXL's own structure, narrow: more residual shapes than torch compiles by default, fewer graphs than blocks."""
    narrow = {"block_out_channels": [32, 64, 128], "attention_head_dim": [1, 2, 4], "cross_attention_dim": 32}
    config = SDXL_UNET | narrow | {"sample_size": 8}
    unet = frozen.frozen_copy(random_unet(config, CPU, torch.float32), torch.float32)
    frozen.skip_empty_prompts(unet)
    prompts, counter = random_prompts(config, 2), CompileCounterWithBackend("eager")
    text, added = prompts.of(torch.tensor([0, 2]), torch.float32)
    call = lambda: (
        unet(
            torch.ones(2, 4, 8, 8), torch.tensor([1, 2]), encoder_hidden_states=text[:1], added_cond_kwargs=added
        ).sample
    )
    with torch.no_grad():
        plain = call()
        regions = frozen.compile_regions(unet, backend=counter)
        assert torch.allclose(plain, call(), atol=1e-5)
        graphs = counter.frame_count
        call()
    assert 14 <= graphs <= 25 < regions and counter.frame_count == graphs


def test_float8_layers_are_near_their_originals():
    """Within the format's 3 bits of mantissa (error 2^-4 at most, uniform: a variance of 2^-8 / 3), over its range."""
    g = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 48).bfloat16().requires_grad_(False)
    x = torch.randn(3, 5, 64, generator=g).bfloat16() * torch.logspace(-2, 1, 5)[:, None].bfloat16()
    exact = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float())
    network = nn.ModuleDict({"block": nn.ModuleDict({"attentions": nn.ModuleList([linear])})})
    assert frozen.to_float8(network) == 1
    layer = network["block"]["attentions"][0]
    frozen.calibrate(network, lambda: layer(x))
    rounded = layer(x)
    assert rounded.shape == exact.shape and rounded.dtype == torch.bfloat16 and not layer.observing
    error = ((rounded - exact).square().mean((0, 2)) / (exact - linear.bias).square().mean((0, 2)))[1:]
    assert (error < 2 * 2**-8 / 3).all() and (error > 1e-4).all()
    scale = float(layer.x_scale)
    assert math.log2(scale) % 1 == 0 and 2 * x.abs().max() <= 448 * scale < 4 * x.abs().max()
    assert layer(1e6 * x).isfinite().all()  # beyond the room to spare it is clipped


def test_float8_takes_the_attentions_linear_layers_alone(image_teacher):
    copy = frozen.frozen_copy(image_teacher.unet, torch.bfloat16)
    count = frozen.to_float8(copy)
    made = [name for name, m in copy.named_modules() if isinstance(m, frozen.Float8Linear)]
    assert count == len(made) > 4 and all(".attentions." in name for name in made)
    assert isinstance(copy.time_embedding.linear_1, nn.Linear)


def test_the_first_call_sets_the_scales_of_float8_and_no_other(image_teacher, monkeypatch):
    monkeypatch.setattr(frozen, "check_float8", lambda device: None)
    g = torch.Generator().manual_seed(0)
    x, t, c = torch.randn(6, 1, 8, 8, generator=g), torch.tensor([1, 10, 100, 300, 700, 1000]), torch.arange(6)
    exact = image_teacher.output(x, t, c)
    image_teacher.freeze("fp8")
    first = image_teacher.output(x, t, c)
    layers = [m for m in image_teacher._frozen[0].modules() if isinstance(m, frozen.Float8Linear)]
    scales = [float(layer.x_scale) for layer in layers]
    assert len(layers) > 4 and len({*scales} - {1.0}) > 1 and float((first - exact).square().mean() / exact.var()) < 1e-2
    assert torch.equal(image_teacher.output(x, t, c), first)
    image_teacher.output(100 * x, t, c)
    assert [float(layer.x_scale) for layer in layers] == scales


def test_a_frozen_image_teacher_holds_bf16_and_keeps_its_own_weights(image_teacher):
    """Samples and schedule stay as they are; the copy's rounding is bfloat16's; students copy float32 weights."""
    g = torch.Generator().manual_seed(0)
    x, t, c = torch.randn(6, 1, 8, 8, generator=g), torch.tensor([1, 10, 100, 300, 700, 1000]), torch.arange(6)
    before, exact = {n: v.clone() for n, v in image_teacher.state_dict().items()}, image_teacher.output(x, t, c)
    image_teacher.freeze()
    assert {p.dtype for p in image_teacher._frozen[0].parameters()} == {torch.bfloat16}
    found = image_teacher.output(x, t, c)
    error = float((found - exact).square().mean() / exact.var())
    assert found.dtype == torch.float32 and 1e-8 < error < 1e-3
    after = image_teacher.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], v) for n, v in before.items())


def test_in_float32_the_frozen_copy_solves_as_the_network(image_teacher):
    x, c = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    plain = solve(image_teacher, x, 5, c, 3.0, "heun", Grid(5)).x
    assert torch.allclose(
        plain, solve(image_teacher.freeze(dtype=torch.float32), x, 5, c, 3.0, "heun", Grid(5)).x, atol=1e-4
    )


def test_fp8_without_such_a_gpu_gets_one_sentence(sdxl, image_teacher, tmp_path):
    for teacher in (sdxl, image_teacher):
        with pytest.raises(InputError, match="teacher_precision = 'fp8' needs a GPU with FP8 .*allowed here: auto.$"):
            frozen.check_float8(CPU)
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="teacher_precision = 'fp8' needs a GPU"):
                teacher.freeze("fp8")
    values = dict(
        study="gmm", run_dir=str(tmp_path), group_name="main", solver="ddim", intervals=5, guidance=[2.0],
        horizons=["cm"], seeds=[0], updates=2, batch=4, teacher_precision="fp8",
    )  # fmt: skip
    study = load_study("gmm", tmp_path, CPU)
    with pytest.raises(InputError, match="teacher_precision = 'fp8' is not possible for the study gmm"):
        train_group(study, validate(DistillParameters, values), CPU)
    with pytest.raises(InputError, match="teacher_precision = 'fp4' is not possible; allowed: one of auto, fp8"):
        validate(DistillParameters, values | {"teacher_precision": "fp4"})
