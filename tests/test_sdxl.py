"""The SDXL study on a tiny random pipeline: cache, train, save, load, sample, measure. Nothing is downloaded."""

import gc
import json
import math
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sdxl
import torch
from interruption import interrupted_at
from safetensors.torch import load_file

from dcm import memory, readme, sdxl_data, sdxl_dry_run, sdxl_study, training
from dcm.artifacts import read_tensors
from dcm.consistency import ConsistencyFunction, sample
from dcm.distill import Settings, make_optimizer
from dcm.errors import InputError
from dcm.evaluation import EvaluationSet, load_group
from dcm.lora import TARGETS, LoRAStudents
from dcm.metrics import ode_error
from dcm.parameters import DistillParameters, TeacherParameters, validate
from dcm.schedule import Grid
from dcm.sdxl_quality import AestheticHead, ClipScores, DinoFeatures
from dcm.solvers import solve
from dcm.studies import load_study
from dcm.teachers.base import Teacher, guided_noise
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.training import train_group

CPU = torch.device("cpu")
TRAIN = dict(
    study="sdxl", group_name="main", solver="ddim", intervals=4, guidance=[2.0], horizons=["cm", "direct"], seeds=[24],
    updates=3, batch=4, lr=1e-2, width=2, device="cpu", checkpoint_seconds=1e-6,
)  # fmt: skip


def teacher_parameters(values, folder, **more):
    return validate(TeacherParameters, values | {"run_dir": str(folder)} | more)


def distill_parameters(folder, **more):
    return validate(DistillParameters, TRAIN | {"run_dir": str(folder)} | more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Notebook 1's parameters for the tiny pipeline."""
    return tiny_sdxl.write_all(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def prepared(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    sdxl_study.prepare(teacher_parameters(made, folder), folder, CPU)
    return folder


@pytest.fixture(scope="module")
def study(prepared):
    return load_study("sdxl", prepared, CPU)


@pytest.fixture(scope="module")
def distilled(study, prepared):
    return train_group(study, distill_parameters(prepared), CPU)


@pytest.fixture(scope="module")
def pipe(made):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(made["model"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def batch(study, size=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *study.teacher.shape, generator=g)
    return x, torch.randint(1, 1001, (size,), generator=g), torch.arange(size) % study.teacher.num_classes


def trained(study, seeds=(0, 1), rank=2):
    """Students whose adapters are no longer zero."""
    students = LoRAStudents(study.network, seeds, rank)
    for p, g in zip(students.parameters(), range(10**6)):
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(g))
    return students


# --- encoding


def test_the_cache_is_what_the_pipeline_encodes(study, pipe):
    """Prompt embeddings as the pipeline's own; latents within the posterior of its autoencoder."""
    from PIL import Image

    theirs, _, pooled, _ = pipe.encode_prompt(tiny_sdxl.CAPTIONS[1], do_classifier_free_guidance=False)
    text, added = study.data.prompts.of(torch.tensor([1]), torch.float32)
    assert torch.allclose(text, theirs, atol=1e-6) and torch.allclose(added["text_embeds"], pooled, atol=1e-6)
    assert added["time_ids"][0].tolist()[:2] == [72, 68]  # image 1 is 72 high and 68 wide
    size_ids = study.data.prompts.size_ids
    assert (size_ids[:, 4:] == 64).all() and (size_ids[:, 2:4] >= 0).all()
    folder = sdxl_data.Path(pipe.config._name_or_path).parent / "images"
    image = Image.open(folder / "0000.png").convert("RGB")
    assert (image.height, image.width) == (64, 72)  # the shorter side is 64 already: no resizing
    left = int(size_ids[0, 3])
    x = torch.from_numpy(np.array(image))[:, left : left + 64].permute(2, 0, 1)[None] / 127.5 - 1
    posterior = pipe.vae.encode(x).latent_dist
    z = (study.data.latents[0] / 0.13025 - posterior.mean[0]) / posterior.std[0]
    assert 0.7 < z.detach().std().item() < 1.3 and abs(z.detach().mean().item()) < 0.3


def test_an_interrupted_encoding_goes_on_and_nothing_half_written_is_used(made, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(sdxl_data, "SHARD", 2)
    p, cache = teacher_parameters(made, tmp_path), tmp_path / "teacher/cache"
    real, calls = sdxl_data.Encoder.encode, []

    def dies(self, rows, items):
        calls.append(rows.start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, rows, items)

    monkeypatch.setattr(sdxl_data.Encoder, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        sdxl_study.prepare(p, tmp_path, CPU)
    assert [f.name for f in cache.iterdir()] == ["00000.safetensors"] and not (
        tmp_path / "teacher/teacher.json"
    ).exists()
    sdxl_study.prepare(p, tmp_path, CPU)
    assert calls == [0, 2, 2, 4]
    # Encoded two at a time or all at once: item i depends on (seed, i) alone.
    whole = sdxl_data.CachedLatents.load(cache, 6)
    monkeypatch.setattr(sdxl_data, "SHARD", 64)
    once = sdxl_data.CachedLatents.load(prepared / "teacher/cache", 6)
    assert torch.allclose(whole.latents, once.latents, atol=1e-5)
    assert torch.equal(whole.prompts.size_ids, once.prompts.size_ids)
    # A damaged file is made anew, whole ones are left alone.
    monkeypatch.setattr(sdxl_data, "SHARD", 2)
    (cache / "00001.safetensors").write_bytes((cache / "00001.safetensors").read_bytes()[:-9])
    before = (cache / "00000.safetensors").stat().st_mtime_ns
    sdxl_study.prepare(p, tmp_path, CPU)
    assert torch.equal(sdxl_data.CachedLatents.load(cache, 6).latents, whole.latents)
    assert (cache / "00000.safetensors").stat().st_mtime_ns == before


def test_captions_in_metadata_files(tmp_path):
    tiny_sdxl.write_images(tmp_path, 3)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": f"{i:04d}.png", "text": f"caption {i}"}) for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert [c for _, c in sdxl_data.captioned_images(tmp_path)] == ["caption 0", "caption 1", "caption 2"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0000.png,a\n0001.png,b\n0002.png,\n")
    with pytest.raises(InputError, match="1 of 3 images in .* have no caption, 0002.png the first"):
        sdxl_data.captioned_images(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,caption\n0000.png,a\n")
    with pytest.raises(InputError, match="column file_name"):
        sdxl_data.captioned_images(tmp_path)


# --- teacher and students


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
    copy = __import__("copy").deepcopy(students)  # as weight averaging does
    assert torch.equal(copy(*rows), both) and not set(copy.names) & set(students.names)
    names = copy.names
    del copy
    gc.collect()
    assert not set(names) & set(study.network.unet.peft_config)


def gradients(students, study, **how):
    """Gradients of both members on one batch, as :func:`dcm.distill.distill` computes them."""
    sdxl_study.ready_network(students, SimpleNamespace(**({"gradient_checkpointing": False, "microbatch": 0} | how)))
    x, t, c = batch(study, 4)
    students.zero_grad()
    for part in students.parts:
        students.backward(students(x[None], t[None], c[None], members=part).square().mean()[None], part)
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
    students.clip_gradients(1e9)
    students.scale.fill_(2.0**10)
    gradients(students, study)
    students.clip_gradients(1e9)
    for a, p in zip(plain, students.parameters()):
        assert torch.allclose(a, p.grad, atol=1e-6, rtol=1e-4)
    next(students.adapters[1].parameters()).grad[0] = math.inf
    students.clip_gradients(1.0)
    assert students.scale.tolist() == [2.0**10, 2.0**9]
    assert all(p.grad is None for p in students.adapters[1].parameters())
    assert all(p.grad is not None for p in students.adapters[0].parameters())


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.06), ("fp16", 0.01)])
def test_sixteen_bits_round_what_32_bits_compute(precision, tolerance):
    """Teacher and gradients at most so far from those of the same weights in float32, relative to their norm."""
    dtype, config = sdxl_study.PRECISIONS[precision], tiny_sdxl.UNET
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


# --- training


def test_training_moves_both_students_and_leaves_the_unet_alone(study, distilled, pipe):
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert distilled.tensors["loss"].isfinite().all() and len(distilled.tensors["loss"]) == 3
    start = LoRAStudents(study.network, [24, 24], 2).state_dict()
    last = {n.removeprefix("3/"): v for n, v in distilled.tensors.items() if n.startswith("3/")}
    assert set(last) == set(start)
    for m in range(2):
        moved = [n for n in last if n.startswith(f"adapters.{m}") and not torch.equal(last[n], start[n])]
        assert len(moved) > 0.9 * sum(n.startswith(f"adapters.{m}") for n in last)
    theirs = pipe.unet.state_dict()
    for path, module in study.network.unet.named_modules():
        base = module.base_layer if isinstance(module, BaseTunerLayer) else module
        if f"{path}.weight" in theirs and hasattr(base, "weight"):
            assert torch.equal(base.weight, theirs[f"{path}.weight"])
    # The Direct CM's cost: n steps of two evaluations each; the CM rides on the same trajectory.
    assert 2 * 4 * 3 <= distilled.about["evaluations"] <= 2 * 4 * 3 * 4  # n is at most 4


@pytest.mark.parametrize("update", [1, 2])
def test_a_killed_run_ends_with_the_same_weights(study, distilled, prepared, tmp_path, monkeypatch, update):
    shutil.copytree(prepared / "teacher", tmp_path / "teacher")
    with interrupted_at(update + 1):
        train_group(study, distill_parameters(tmp_path), CPU)
    checkpoint = tmp_path / "checkpoints/main.safetensors"
    tensors, about = read_tensors(checkpoint)
    assert about["update"] == update
    assert not [n for n in tensors if "conv_in" in n]  # adapters only, no UNet
    if update == 2:
        with pytest.raises(
            InputError, match=r"from other settings \(lr = 0.01 there and 0.02 here\); set them as they"
        ):
            train_group(study, distill_parameters(tmp_path, lr=0.02), CPU)
        assert checkpoint.exists()
    resumed = train_group(study, distill_parameters(tmp_path), CPU)
    for name, value in distilled.tensors.items():
        assert torch.equal(value, resumed.tensors[name]), name


def test_two_processes_train_as_one(study, distilled, prepared, tmp_path):
    """On the CPU, through accelerate: the same losses and the same way gone, up to the rounding of sums.

    (Adam makes whole steps of gradients that are next to nothing, so single weights may differ.)
    """
    shutil.copytree(prepared / "teacher", tmp_path / "teacher")
    from dcm.team import launch

    launch(distill_parameters(tmp_path, processes=2))
    both = load_group(tmp_path, "main")
    assert (distilled.about["processes"], both.about["processes"]) == (1, 2)
    assert both.about["evaluations"] == distilled.about["evaluations"]
    assert torch.allclose(distilled.tensors["loss"], both.tensors["loss"], rtol=1e-4)
    start = LoRAStudents(study.network, [24, 24], 2).state_dict()
    one, two = ({n: g.tensors[f"3/{n}"] - v for n, v in start.items()} for g in (distilled, both))
    apart = sum((one[n] - two[n]).square().sum() for n in start) / sum(v.square().sum() for v in one.values())
    assert 0 < apart**0.5 < 0.01
    assert (tmp_path / "adapters/main/direct-w2-seed24/pytorch_lora_weights.safetensors").exists()


def test_a_batch_must_be_shareable(tmp_path, monkeypatch):
    from dcm.team import Team, launch

    team = Team(SimpleNamespace(process_index=1, num_processes=3))
    assert team.rows(9) == slice(3, 6) and not team.first
    with pytest.raises(InputError, match="batch = 16 cannot be shared by 3 processes; allowed: multiples of 3"):
        team.rows(16)
    with pytest.raises(InputError, match="batch = 4 cannot be shared by 3 processes"):
        launch(distill_parameters(tmp_path, processes=3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="processes = 2 is not possible; allowed: 1 to 1, one a GPU"):
        launch(distill_parameters(tmp_path, processes=2, device="cuda"))
    assert not list(tmp_path.iterdir())


def test_saved_adapters_load_into_a_pipeline_and_give_the_students_output(study, distilled, prepared, pipe):
    x, t, c = batch(study)
    rows = [v.expand(2, *v.shape) for v in (x, t, c)]
    own = distilled.students(study, 3, CPU)(*rows)
    text, added = study.data.prompts.of(c, torch.float32)
    for m, name in enumerate(("cm-w2-seed24", "direct-w2-seed24")):
        folder = prepared / "adapters/main" / name
        assert all(k.startswith("unet.") for k in load_file(folder / "pytorch_lora_weights.safetensors"))
        pipe.load_lora_weights(folder)
        theirs = pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        pipe.unload_lora_weights()
        bare = pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        assert torch.allclose(own[m], theirs, atol=1e-5) and not torch.allclose(bare, theirs, atol=1e-3)


def test_eight_bit_adam_needs_its_package_and_its_state_survives(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="needs the package bitsandbytes, which is not installed; allowed here: adamw"):
        make_optimizer(layer, Settings(1, 1, optimizer="adamw8bit"))
    state = {0: {"step": 7, "state1": torch.arange(3, dtype=torch.uint8)}}  # bitsandbytes keeps a plain number
    loaded = []
    fake = SimpleNamespace(state_dict=lambda: {"state": state, "param_groups": []}, load_state_dict=loaded.append)
    training._load_optimizer(fake, training._optimizer_tensors(fake))
    assert isinstance(loaded[0]["state"][0]["step"], int) and loaded[0]["state"][0]["step"] == 7
    assert torch.equal(loaded[0]["state"][0]["state1"], state[0]["state1"])


# --- sampling


@pytest.mark.parametrize(("intervals", "steps"), [(100, 1), (100, 2), (100, 4), (50, 2), (20, 5)])
def test_few_step_sampling_is_the_lcm_scheduler(study, intervals, steps):
    """On the same noise, step for step; diffusers counts timesteps from 0, so its network is called with t + 1."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    scheduler.set_timesteps(steps, original_inference_steps=intervals)
    grid = Grid(intervals)
    assert [int(grid.time(n)) for n in grid.student_indices(steps)] == [int(t) + 1 for t in scheduler.timesteps]
    students = trained(study, seeds=(0,))
    x, _, c = batch(study, 2)
    noise, fresh = x, [torch.randn(x.shape, generator=torch.Generator().manual_seed(k)) for k in range(1, steps)]
    with torch.no_grad():
        theirs = noise
        for k, t in enumerate(scheduler.timesteps):
            eps = students(theirs[None], torch.full((1, 2), int(t) + 1), c[None])[0]
            step = scheduler.step(eps, t, theirs, generator=torch.Generator().manual_seed(k + 1))
            theirs = step.prev_sample
    ours = sample(study.f, students, noise[None], c[None], grid, fresh)[0]
    assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.std()))
    assert torch.equal(study.f.coefficients(torch.tensor([0]), noise[:1])[1].squeeze(), torch.tensor(0.0))


def test_where_the_lcm_scheduler_differs(study):
    """Its grid is floored where the paper's is rounded; its scaling uses t - 1, which changes nothing one can see."""
    from diffusers import LCMScheduler

    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(8, original_inference_steps=100)
    theirs = [int(t) + 1 for t in scheduler.timesteps]
    ours = [n * 10 for n in Grid(100).student_indices(8)]
    assert ours == [1000, 880, 750, 620, 500, 380, 250, 120] and theirs == [1000, 880, 750, 630, 500, 380, 250, 130]
    x = torch.zeros(1, 1)
    for t in (10, 1000):
        skip, out = study.f.coefficients(torch.tensor([t]), x)
        their_skip, their_out = scheduler.get_scalings_for_boundary_condition_discrete(t - 1)
        assert abs(float(skip) - their_skip) < 1e-5 and abs(float(out) - their_out) < 1e-5


def test_noise_is_the_samples_own_and_the_teachers_are_kept_by_chunk(study, distilled, prepared):
    evaluation = EvaluationSet(study, prepared, 6, 0, CPU)
    students = distilled.students(study, 3, CPU)
    x = evaluation.student_samples(students, 4, 2)
    assert torch.allclose(
        EvaluationSet(study, prepared, 3, 0, CPU).student_samples(students, 4, 2), x[:, :3], atol=1e-4
    )
    solution = evaluation.teacher_samples("ddim", 4, 2.0)
    parts = sorted((prepared / "evaluation/ddim-4-2-parts").iterdir())
    assert len(parts) == 2 and solution.shape == (6, 4, 8, 8)  # chunks of 4
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()  # interrupted after the first chunk
    assert torch.equal(evaluation.teacher_samples("ddim", 4, 2.0), solution)
    assert parts[0].stat().st_mtime_ns == kept and parts[1].exists()
    assert all(math.isfinite(ode_error(own, solution)) and ode_error(own, solution) > 0 for own in x)


# --- metrics


def test_quality_of_the_teacher_against_itself_and_what_is_not_measured(study, prepared, monkeypatch):
    features = study.quality.encoders.features
    assert set(features) == {"fd_teacher", "fd_dino"} and features["fd_teacher"].name == "EfficientNet-Lite0"
    monkeypatch.setitem(features, "fd_teacher", features["fd_dino"])  # 1,280 features take seconds
    evaluation = EvaluationSet(study, prepared, 6, 0, CPU)
    solution = evaluation.teacher_samples("ddim", 4, 2.0)
    own = study.quality.measure(solution, evaluation.condition, solution)
    noise = 9 * torch.randn(solution.shape, generator=torch.Generator().manual_seed(0))
    noisy = study.quality.measure(solution + noise, evaluation.condition, solution)
    assert list(own) == list(study.quality.metrics)
    assert (
        math.isnan(own["fid_teacher"])
        and "FID to teacher (Inception, mode clean) is not measured" in study.quality.note
    )
    assert study.quality.primary == "fd_teacher"
    for name in ("fd_teacher", "fd_dino"):
        assert own[name] < 0.01 * noisy[name]
    assert own["sharpness"] == pytest.approx(1) and noisy["sharpness"] != pytest.approx(1, abs=1e-3), noisy["sharpness"]
    assert -1 <= own["clip_score"] <= 1 and math.isfinite(own["aesthetic"])
    nothing = study.quality.measure(solution * math.nan, evaluation.condition, solution)
    assert all(math.isnan(v) for v in nothing.values())


def test_missing_encoders_are_named_with_the_place_they_were_looked_for(made, prepared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(prepared / "teacher", folder / "teacher")
    about = json.loads((folder / "teacher/teacher.json").read_text())
    about |= {"dino": "no/dino", "clip": "no/clip", "aesthetic": str(tmp_path / "none.safetensors"), "inception": "off"}
    (folder / "teacher/teacher.json").write_text(json.dumps(about))
    quality = load_study("sdxl", folder, CPU).quality
    for text in (
        "dino = 'no/dino' is not here",
        "clip = 'no/clip' is not here",
        "inception is off",
        "has no copy of it",
    ):
        assert text in quality.note
    assert set(quality.encoders.missing) == {"fid_teacher", "fd_dino", "clip_score", "aesthetic"}
    assert quality.primary == "fd_teacher" and quality.beside == ("sharpness",)
    quality.encoders.features.clear()  # it would be measured, and takes seconds
    measured = quality.measure(x := torch.randn(4, 4, 8, 8), torch.arange(4), x)
    assert all(math.isnan(measured[name]) for name in quality.encoders.missing) and measured["sharpness"] == 1


def test_clip_and_aesthetic_scores_by_hand(made):
    from transformers import CLIPModel

    head = AestheticHead.load(made["aesthetic"], 12)
    clip = ClipScores(made["clip"], CPU, head)
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1  # the encoder's own size
    captions = tiny_sdxl.CAPTIONS[:3]
    scores = clip.scores(x, captions)
    model = CLIPModel.from_pretrained(made["clip"]).eval()
    levels = ((x + 1) * 127.5).round() / 255
    mean, deviation = (
        torch.tensor([0.48145466, 0.4578275, 0.40821073]),
        torch.tensor([0.26862954, 0.26130258, 0.27577711]),
    )
    with torch.no_grad():
        tokens = clip.tokenizer(captions, padding=True, truncation=True, max_length=12, return_tensors="pt")
        out = model(pixel_values=(levels - mean[:, None, None]) / deviation[:, None, None], **tokens)
        assert np.allclose(scores["clip_score"], (out.image_embeds * out.text_embeds).sum(-1), atol=1e-5)
        w = [head.state_dict()[f"layers.{k}.weight"].double() for k in (0, 2, 4, 6, 7)]
        b = [head.state_dict()[f"layers.{k}.bias"].double() for k in (0, 2, 4, 6, 7)]
        score = out.image_embeds.double()
        for matrix, bias in zip(w, b):
            score = score @ matrix.T + bias
    assert np.allclose(scores["aesthetic"], score[:, 0], atol=1e-5)
    assert [tuple(m.shape) for m in w] == [(1024, 12), (128, 1024), (64, 128), (16, 64), (1, 16)]
    with pytest.raises(InputError, match="is no aesthetic predictor"):
        AestheticHead.load(made["aesthetic"])  # made for embeddings of 12, not 768


def test_dino_features_are_the_normed_class_token(made):
    from transformers import Dinov2Model

    features = DinoFeatures(made["dino"], CPU, size=28)
    x = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (((x + 1) * 127.5).round() / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(made["dino"]).eval()(pixels).pooler_output
    assert np.allclose(features.features(x), theirs, atol=1e-5)


# --- cost and memory


def test_the_published_configuration_has_sdxls_parameters():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**sdxl_dry_run.SDXL_UNET)
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    # and adapters of rank 64 on the paper's layers have the 197 million parameters of the published LCM-LoRA for SDXL
    adapted = [m for path, m in unet.named_modules() if path.endswith(tuple(f".{t}" for t in TARGETS))]
    assert len(adapted) == 788
    size = sum(64 * (m.weight[0].numel() + len(m.weight)) for m in adapted)
    assert size == 196_751_360


def test_the_dry_run_on_a_tiny_network(tmp_path, capsys, monkeypatch):
    config, out = tmp_path / "unet.json", tmp_path / "dry_run.json"
    config.write_text(json.dumps(tiny_sdxl.UNET))
    options = "--device cpu --precision fp32 --latent 8 --batch 4 --rank 2 --timed 1 --coarse 4 --intervals 100"
    sdxl_dry_run.main([*options.split(), "--unet", str(config), "--out", str(out)])
    record = json.loads(out.read_text())
    cm, direct, both = record["rows"]
    assert (cm["evaluations_an_update"], direct["evaluations_an_update"]) == (8, 4 * 2 * 50.5)
    measured = record["measured"]
    per_evaluation = sum(measured["solving_seconds_coarse"]) / measured["evaluations_coarse"]
    assert direct["seconds_an_update"] == pytest.approx(measured["student_seconds"] + per_evaluation * 404)
    own = cm["seconds_an_update"] - 8 * per_evaluation
    assert both["seconds_an_update"] == pytest.approx(direct["seconds_an_update"] + max(0, own))
    assert cm["hours"] == pytest.approx(250 * measured["cm_seconds"][0] / 3600) and cm["peak_gib"] is None
    text = capsys.readouterr().out
    assert "random weights" in text and "(extrapolated)" in text and "not measured" in text
    monkeypatch.setattr(sdxl_dry_run, "RESULT", out)
    assert readme.filled("<!-- sdxl dry run -->\nold\n<!-- end -->") == f"<!-- sdxl dry run -->\n{text}<!-- end -->"
    with pytest.raises(SystemExit, match="at SDXL's size needs a GPU, and none is present"):
        sdxl_dry_run.main(["--device", "cpu"])
    with pytest.raises(SystemExit, match="intervals = 3 does not divide"):
        sdxl_dry_run.main(["--device", "cpu", "--coarse", "3"])


def test_too_little_memory_is_refused_with_what_lowers_it(study):
    students = LoRAStudents(study.network, [0, 1], 2)
    size = sum(p.numel() for p in students.parameters())
    p = SimpleNamespace(gradient_checkpointing=False, optimizer="adamw", width=64, ema=0.0)
    need = memory.needed(students, study.teacher.shape, 16, p, peak=lambda s, shape, n: (10 + 3 * n) * memory.GIB)
    assert set(need.peaks) == {1, 4} and need.state == size * 4 // 2 + 8 * size
    assert need.total == int(1.05 * ((10 + 3 * 16) * memory.GIB + need.state))
    memory.check(need, need.total, p)
    with pytest.raises(InputError) as error:
        memory.check(need, 40 * memory.GIB, p)
    said = str(error.value)
    assert "needs about 60.9 GiB of GPU memory, and 40.0 GiB can be had" in said and "\n" not in said
    for setting in (
        "gradient_checkpointing = true",
        "microbatch below 16",
        "optimizer = 'adamw8bit'",
        "width below 64",
    ):
        assert setting in said
    students.microbatch, p.optimizer, p.ema = 2, "adamw8bit", 0.9
    fewer = memory.needed(students, study.teacher.shape, 16, p, peak=lambda s, shape, n: n * memory.GIB)
    assert fewer.samples == 2 and set(fewer.peaks) == {1, 2} and fewer.state == size * 4 // 2 + 2 * size + 4 * size

    def full(*_):
        raise torch.OutOfMemoryError

    with pytest.raises(InputError, match="does not hold 2 samples in training; it is lowered by .*microbatch below 2"):
        memory.needed(students, study.teacher.shape, 16, p, peak=full)


# --- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "no/such-model"}, "model = 'no/such-model' is not here: .* is no folder, and .* has no copy of it"),
        ({"vae": "no/such-vae"}, "vae = 'no/such-vae' is not here"),
        ({"data_dir": "nowhere"}, "nowhere holds no images"),
        ({"dry_run": True, "study": "gmm", "data": "builtin"}, "dry_run = True is not possible for the study gmm"),
        ({"data": "builtin"}, "data = 'builtin' is not possible for the study sdxl; allowed: folder"),
        ({"resolution": 100}, "resolution = 100 is not possible; allowed: a whole number, a multiple of 8"),
    ],
)
def test_bad_input_gets_one_sentence_before_any_work(made, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        sdxl_study.prepare(teacher_parameters(made, tmp_path, **change), tmp_path, CPU)
    assert "\n" not in str(error.value) and not (tmp_path / "teacher").exists()


def test_missing_pieces_are_named(made, prepared, tmp_path):
    with pytest.raises(InputError, match="holds no teacher of the study sdxl; run notebook 1"):
        load_study("sdxl", tmp_path, CPU)
    shutil.copytree(prepared / "teacher", tmp_path / "teacher")
    record = tmp_path / "teacher/teacher.json"
    about = json.loads(record.read_text())
    record.write_text(json.dumps(about | {"folder": str(tmp_path / "gone")}))
    with pytest.raises(InputError, match="the pipeline is no longer in"):
        load_study("sdxl", tmp_path, CPU)
    record.write_text(json.dumps(about))
    (tmp_path / "teacher/cache/00000.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="00000.safetensors is damaged"):
        load_study("sdxl", tmp_path, CPU)
    copy = tmp_path / "pipeline"
    shutil.copytree(made["model"], copy)
    scheduler = copy / "scheduler/scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"epsilon"', '"v_prediction"'))
    with pytest.raises(InputError, match="predicts v_prediction; allowed: a StableDiffusionXLPipeline, epsilon"):
        sdxl_study.check_pipeline(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(InputError, match="holds no pipeline"):
        sdxl_study.check_pipeline(copy)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(sdxl_study, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(InputError, match=r"the study sdxl needs peft: install them with pip install -e '.\[sdxl\]'"):
        sdxl_study.check_packages()


def test_an_eps_student_at_its_start_is_the_teachers_denoiser(study):
    f = ConsistencyFunction(study.teacher.schedule, prediction="epsilon")
    x, t, c = batch(study)
    eps = study.teacher.predict_noise(x, t, c)
    x0_hat = (x - study.teacher.schedule.sigma(t, x) * eps) / study.teacher.schedule.alpha(t, x)
    own = f(LoRAStudents(study.network, [0], 2), x[None], t[None], c[None])[0]
    assert torch.allclose(own, x0_hat, atol=1e-4 * float(x0_hat.std()))
