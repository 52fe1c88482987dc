"""Small models of SDXL's kind: students with UNets of their own, and the teacher's own samples in place of images."""

from pathlib import Path

import pytest
import tiny_sdxl
import torch
from sdxl_helpers import CPU, batch, distill_parameters, teacher_parameters

from dcm.horizon import method_name
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.studies.registry import load_study
from dcm.studies.sdxl import memory
from dcm.studies.sdxl import pipeline as sdxl_pipeline
from dcm.support.errors import InputError
from dcm.support.seeds import sample_noise
from dcm.training.run import train_group

OWN = {"width": 0, "group_name": "own", "horizons": ["cm", "direct", "direct>cm"], "updates": 4}


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_students_with_networks_of_their_own_start_as_the_teacher_and_share_nothing(study, lora_rank):
    students = study.make_students([0, 1, 0], 0, lora_rank)
    x, t, c = batch(study)
    rows = [v.expand(3, *v.shape) for v in (x, t, c)]
    teacher = study.teacher.predict_noise(x, t, c)
    assert all(torch.allclose(own, teacher, atol=1e-6) for own in students(*rows))
    trained = [[p for p in network.parameters() if p.requires_grad] for network in students.networks]
    every = [len([*network.parameters()]) for network in students.networks]
    assert (len(trained[0]) == every[0]) == (lora_rank == 0) and len({p.data_ptr() for row in trained for p in row}) == sum(map(len, trained))
    if lora_rank:  # the first factor by seed
        assert torch.equal(trained[0][0], trained[2][0]) and not torch.equal(trained[0][0], trained[1][0])
    for p in trained[1]:
        p.data += 0.1
    after = students(*rows)
    assert torch.allclose(after[0], teacher, atol=1e-6) and not torch.allclose(after[1], teacher, atol=1e-3)
    assert torch.equal(study.teacher.predict_noise(x, t, c), teacher)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_they_train_switch_and_are_written_for_diffusers(study, prepared, pipe, lora_rank):
    from diffusers import UNet2DConditionModel

    name = f"own{lora_rank}"
    group = train_group(study, distill_parameters(prepared, **OWN | {"group_name": name, "lora_rank": lora_rank, "lr": 1e-3}), CPU)
    methods = [method_name(m.horizon, 4) for m in group.group.members]
    m = methods.index("Direct CM")
    assert sorted(methods) == ["CM", "Direct CM", "direct>cm"]
    students = group.students(study, 4, CPU)
    kept = [n for n in group.tensors if n != "loss"]
    assert all("lora_" in n for n in kept) == (lora_rank > 0)  # of the teacher's weights beneath there is no copy
    with pytest.raises(RuntimeError, match="Missing key"):
        students.load_state_dict({})
    x, t, c = batch(study)
    own = students(*(v.expand(3, *v.shape) for v in (x, t, c)))
    assert not torch.allclose(own[m], study.teacher.predict_noise(x, t, c), atol=1e-4)
    folder = prepared / "adapters" / name / "direct-w2-seed24"
    if lora_rank:
        pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
        unet = pipe.unet
    else:
        unet = UNet2DConditionModel.from_pretrained(folder)
    text, added = study.data.prompts.of(c, torch.float32)
    theirs = unet(x, t, encoder_hidden_states=text, added_cond_kwargs=added).sample
    if lora_rank:
        pipe.unload_lora_weights()
    assert torch.allclose(own[m], theirs, atol=1e-5)


def test_what_cannot_be_is_refused_before_training(study, prepared):
    with pytest.raises(InputError, match="lora_rank = 2 is not possible; allowed: 0, or any with width = 0"):
        distill_parameters(prepared, lora_rank=2)
    with pytest.raises(InputError, match="microbatch = 2 is not possible; allowed: 0 with width = 0"):
        distill_parameters(prepared, **OWN | {"microbatch": 2})
    students = study.make_students([0], 0)
    with pytest.raises(InputError, match="precision = 'fp16' needs a loss scale, .* allowed: bf16 and fp32"):
        memory.check_own(students, torch.float16, distill_parameters(prepared, **OWN))


def test_the_teachers_own_samples_are_data(made, tmp_path):
    """Drawn as the study itself would, for the captions beside the pipeline."""
    captions = Path(made["model"]) / "captions.txt"
    values = made | {"data": "teacher", "teacher_images": 3}
    with pytest.raises(InputError, match=r"data = 'teacher' takes its captions from .*captions.txt, which is not there"):
        sdxl_pipeline.prepare(teacher_parameters(values, tmp_path), tmp_path, CPU)
    captions.write_text("".join(f"{caption}\n" for caption in tiny_sdxl.CAPTIONS))
    try:
        sdxl_pipeline.prepare(teacher_parameters(values, tmp_path), tmp_path, CPU)
    finally:
        captions.unlink()
    study = load_study("sdxl", tmp_path, CPU)
    assert study.quality.captions == tiny_sdxl.CAPTIONS[:3] and study.data.latents.shape == (3, 4, 8, 8)
    noise = sample_noise(teacher_parameters(values, tmp_path).seed, "teacher", range(3), (4, 8, 8))
    expected = solve(study.teacher, noise, 50, torch.arange(3), 1.0, "ddim", Grid(50)).x
    torch.testing.assert_close(study.data.latents, expected, rtol=1e-4, atol=1e-4)
    assert study.data.prompts.size_ids.tolist() == 3 * [[64, 64, 0, 0, 64, 64]]
