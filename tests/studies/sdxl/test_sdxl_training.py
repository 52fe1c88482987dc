"""Training of SDXL students, in one process and two, and sampling."""

import math
import shutil
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from interruption import interrupted_at
from safetensors.torch import load_file
from sdxl_helpers import CPU, batch, distill_parameters, trained

from dcm.consistency import sample
from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.share import measure_quality, sample_in_processes
from dcm.metrics.metric import ode_error
from dcm.parameters.notebooks import SampleQualityParameters
from dcm.schedule import Grid
from dcm.students.lora import LoRAStudents
from dcm.support import checkpoint
from dcm.support.errors import InputError
from dcm.support.files import read_tensors, write_tensors
from dcm.training.run import train_group
from dcm.training.saved import load_group
from dcm.training.settings import Settings, make_optimizer


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


def test_two_processes_train_as_one(study, distilled, prepared, tmp_path, monkeypatch):
    """On the CPU, through accelerate: the same losses and the same way gone, up to the rounding of sums.

    (Adam makes whole steps of gradients that are next to nothing, so single weights may differ.)
    """
    shutil.copytree(prepared / "teacher", tmp_path / "teacher")
    from dcm.training.launch import launch

    launch(distill_parameters(tmp_path, processes=2, solves_in_flight=2))
    both = load_group(tmp_path, "main")
    assert (distilled.about["processes"], both.about["processes"]) == (1, 2)
    assert torch.allclose(distilled.tensors["loss"], both.tensors["loss"], rtol=1e-4)
    start = LoRAStudents(study.network, [24, 24], 2).state_dict()
    one, two = ({n: g.tensors[f"3/{n}"] - v for n, v in start.items()} for g in (distilled, both))
    apart = sum((one[n] - two[n]).square().sum() for n in start) / sum(v.square().sum() for v in one.values())
    assert 0 < apart**0.5 < 0.01
    assert (tmp_path / "adapters/main/direct-w2-seed24/pytorch_lora_weights.safetensors").exists()
    # And each samples its own parts of the teacher's.
    own, alone = EvaluationSet(study, tmp_path, 16, 0, CPU), EvaluationSet(study, tmp_path / "alone", 16, 0, CPU)
    assert len(own.missing("ddim", 4, 2.0)) == 4
    sample_in_processes(own, both, distill_parameters(tmp_path, processes=2, samples=16))
    assert own.missing("ddim", 4, 2.0) == [] and len(own.missing("ddim", 4, 3.0)) == 4
    assert torch.allclose(own.teacher_samples("ddim", 4, 2.0), alone.teacher_samples("ddim", 4, 2.0), atol=1e-6)
    # And its own sets of students, of which the rows lie in one file.
    p = SampleQualityParameters(study="sdxl", run_dir=str(tmp_path), samples=16, steps=[1, 2], groups=["main"], device="cpu", processes=2)
    shared = list(measure_quality(own, [both], p))
    rows = (tmp_path / "measured/quality.jsonl").read_text().splitlines()
    assert len(shared) == len(rows) == 2 * len(both.sets([1, 2])) == 4
    monkeypatch.delattr("dcm.evaluation.share.launch")  # nothing is left for other processes
    assert pd.DataFrame(measure_quality(own, [both], p)).equals(pd.DataFrame(shared))
    again = list(measure_quality(alone, [both], p.model_copy(update={"processes": 1})))
    for a, b in zip(shared, again):
        assert [a.pop("method"), a.pop("solver")] == [b.pop("method"), b.pop("solver")]
        assert a.pop("group") == b.pop("group") and a == pytest.approx(b, rel=1e-3, nan_ok=True)


def test_a_batch_must_be_shareable(tmp_path, monkeypatch):
    from dcm.support.processes import Processes
    from dcm.training.launch import launch

    team = Processes(SimpleNamespace(process_index=1, num_processes=3))
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
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
        theirs = pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        pipe.unload_lora_weights()
        bare = pipe.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
        assert torch.allclose(own[m], theirs, atol=1e-5) and not torch.allclose(bare, theirs, atol=1e-3)


def test_eight_bit_adam_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(InputError, match="needs the package bitsandbytes, which is not installed; allowed here: adamw"):
        make_optimizer(layer, Settings(1, optimizer="adamw8bit"))


def test_the_state_of_eight_bit_adam_survives_a_checkpoint(tmp_path):
    codes, wrapped = torch.arange(256.0), "__bnb_optimizer_quant_state__"  # as bitsandbytes keeps it: one map for all weights
    slots = lambda k: {"step": 7, wrapped: {"state1": torch.full((3,), k, dtype=torch.uint8), "qmap1": codes}}
    state, loaded = {k: slots(k) for k in range(2)}, []
    fake = SimpleNamespace(state_dict=lambda: {"state": state, "param_groups": []}, load_state_dict=loaded.append)
    write_tensors(tmp_path / "checkpoint.safetensors", checkpoint.optimizer_tensors(fake))
    checkpoint.load_optimizer(fake, read_tensors(tmp_path / "checkpoint.safetensors")[0])
    found = loaded[0]["state"]
    assert [type(found[k]["step"]) for k in state] == [int, int] and found[1]["step"] == 7
    assert all(torch.equal(found[k][wrapped][name], value) for k in state for name, value in state[k][wrapped].items())


def test_real_eight_bit_adam_goes_on_from_a_checkpoint(tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    path, ended = tmp_path / "checkpoint.safetensors", []
    for half in (False, True):  # six steps, and three of them with another three after a checkpoint
        torch.manual_seed(0)
        layer = torch.nn.Linear(128, 64)  # smaller ones keep their state in 32 bits
        optimizer = make_optimizer(layer, Settings(6, optimizer="adamw8bit", lr=1e-2))
        for k in range(6):
            if half and k == 3:
                write_tensors(path, checkpoint.optimizer_tensors(optimizer))
                optimizer = make_optimizer(layer, Settings(6, optimizer="adamw8bit", lr=1e-2))
                checkpoint.load_optimizer(optimizer, read_tensors(path)[0])
            layer(torch.randn(8, 128, generator=torch.Generator().manual_seed(k))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ended.append(layer.weight.detach())
    assert torch.equal(*ended) and any(n.endswith("state1") and t.dtype == torch.uint8 for n, t in read_tensors(path)[0].items())


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
    parts = sorted((prepared / "samples/ddim-4-2-parts").iterdir())
    assert len(parts) == 2 and solution.shape == (6, 4, 8, 8)  # chunks of 4
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()  # interrupted after the first chunk
    assert torch.equal(EvaluationSet(study, prepared, 6, 0, CPU).teacher_samples("ddim", 4, 2.0), solution)
    assert parts[0].stat().st_mtime_ns == kept and parts[1].exists()
    assert all(math.isfinite(ode_error(own, solution)) and ode_error(own, solution) > 0 for own in x)
