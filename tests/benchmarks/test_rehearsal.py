"""The dress rehearsal of SDXL: what it refuses, what it adds up. (`python benchmarks/sdxl_rehearsal.py --tiny` runs it.)"""

from types import SimpleNamespace

import pytest
import random_sdxl
import sdxl_processes
import sdxl_rehearsal
import torch
import yaml

from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters
from dcm.parameters.study import StudyConfig
from dcm.support.errors import InputError
from dcm.support.files import read_json, write_text

GIVEN = SimpleNamespace(
    folder="runs/rehearsal", tiny=False, updates=4, samples=32, intervals=20, solves_in_flight=16, processes=2,
    precision="fp16", optimizer="adamw8bit",
)  # fmt: skip


def test_the_published_sizes_are_those_of_the_papers_models():
    from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionConfig

    sizes, count = random_sdxl.Sizes(), lambda module: sum(p.numel() for p in module.parameters())
    text = lambda size, to: random_sdxl.text_config(size, to, 49408, 77)
    with torch.device("meta"):
        assert count(CLIPTextModelWithProjection(text(sizes.text_2, 1280))) == 694_659_840  # SDXL's second text encoder
        vision = CLIPVisionConfig(image_size=224, patch_size=14, projection_dim=768, **sizes.vision)
        clip = CLIPConfig(text_config=text(sizes.clip_text, 768).to_dict(), vision_config=vision.to_dict(), projection_dim=768)
        assert count(CLIPModel(clip)) == 427_616_513  # openai/clip-vit-large-patch14


def test_what_it_runs_is_a_study_that_the_parameters_allow():
    config = sdxl_rehearsal.configuration(GIVEN, {"model": "here", "data_dir": "there"})
    study = validate(StudyConfig, config)
    p = study.notebook("2_distill", "main")
    assert (p["processes"], p["optimizer"], p["solves_in_flight"], p["intervals"]) == (2, "adamw8bit", 16, 20)
    assert p["horizons"] == ["cm", "direct", "direct>cm"] and study.notebook("1_teacher")["model"] == "here"


def test_it_refuses_a_machine_that_is_too_small(monkeypatch):
    with pytest.raises(InputError, match="at SDXL's size needs a GPU, and none is present; allowed here: --tiny"):
        sdxl_rehearsal.check(GIVEN, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    with pytest.raises(InputError, match=r"needs a GPU of 60 GiB, and this one has 24 GiB; gradient_checkpointing: true \(32 GiB\) in sdxl.yaml lowers that"):
        sdxl_rehearsal.check(GIVEN, torch.device("cuda"))


def test_the_whole_runs_hours_are_its_counts_times_the_rates():
    rates = {"encode an image": 0.0, "teacher evaluation, as it stands": 1.0, "teacher evaluation, fast path": 0.5,
             "student evaluation": 0.0, "decode and measure an image": 0.0}  # fmt: skip
    one, two = (sdxl_rehearsal.whole_run(rates, 12.0, 20, gpus) for gpus in (1, 2))
    # An update took 12 s on 20 intervals, whose solves are 80 intervals longer here, half of them on average, with both halves of the guidance.
    assert one["train"] == pytest.approx(250 * (12 + 0.5 * 16 * 80) / 3600) and two["train"] == pytest.approx(one["train"] / 2)
    assert one["teacher's samples"] == pytest.approx(0.5 * 2 * 100 * 10274 / 3600)
    assert one["errors by starting time"] == pytest.approx(1.0 * 16 * 2 * (100 + 200) * 3 / 3600)  # from 20, 40, 60, 80 and 100
    assert one["encode images"] == one["students' samples"] == 0
    # Of the sets at one step, four of them, two and four, a GPU takes every second, and each sees the teacher's samples once.
    rates |= {"student evaluation": 0.1, "decode and measure an image": 1.0}
    for gpus, steps, sets in ((1, 10, 6), (2, 6, 3), (8, 4, 1)):
        found = sdxl_rehearsal.whole_run(rates, 12.0, 20, gpus)
        assert found["students' samples"] == pytest.approx(0.1 * 2 * steps * 10274 / 3600)
        assert found["decode and measure"] == pytest.approx((2 * sets + 1) * 10274 / 3600)


def test_an_updates_time_has_the_solves_of_an_average_one(tmp_path):
    """Whatever the updates that were timed had to solve; what compiles is left out."""
    values = sdxl_rehearsal.configuration(GIVEN, {"model": "here", "data_dir": "there"})
    plain = validate(StudyConfig, values).notebook("2_distill", "main")
    p = validate(DistillParameters, plain | {"run_dir": str(tmp_path), "group_name": "one", "processes": 1})
    row = lambda k, solved: {"loss": [1.0], "evaluations": k, "solving": solved, "waiting": 0.25, "averaging": 0.5, "students": 1.0}
    slow = [row(100 * k, 60.0) for k in range(1, 5)]
    sdxl_processes.leave(p, {"peak_gib": 2.0, "rows": [*slow, row(600, 2.0), row(1000, 4.0)]})
    found = sdxl_processes.measured(p)
    assert found["parts"] == {"solving": pytest.approx(16 * 21 / 100), "waiting": 0.25, "averaging": 0.5, "students": 1.0}
    assert found["seconds_an_update"] == pytest.approx(16 * 21 / 100 + 1.75) and found["updates_timed"] == 2


def test_a_benchmark_that_stops_early_leaves_the_record_of_what_it_measured(tmp_path, monkeypatch):
    def measured(p):
        if p.processes > 1:
            raise InputError("taken away")
        return {"processes": 1, "seconds_an_update": 2.0, "losses": [[1.0]]}

    write_text(tmp_path / "rehearsal.yaml", yaml.safe_dump(sdxl_rehearsal.configuration(GIVEN, {"model": "here", "data_dir": "there"})))
    monkeypatch.setattr(sdxl_processes, "measured", measured)
    with pytest.raises(InputError, match="taken away"):
        sdxl_processes.run(tmp_path, [1, 2], intervals=5)
    found = read_json(tmp_path / "processes.json")
    assert found["settings"]["intervals"] == 5 and found["device"] and found["commit"] and found["difference"] == {"1": 0.0}
    assert [row["processes"] for row in found["rows"]] == [1] and found["killed"] is None


def test_two_processes_are_timed_and_train_as_one(tmp_path):
    """From one queue of solves, and with gradients averaged."""
    values = dict(
        study="gmm", run_dir=str(tmp_path), solver="ddim", intervals=5, guidance=[2.0], horizons=["cm", "direct"], seeds=[0],
        updates=12, batch=32, lr=1e-2, ema=0.9, width=16, snapshots=0, together=2, device="cpu",
    )  # fmt: skip
    of = lambda n: validate(DistillParameters, values | dict(group_name=f"by{n}", processes=n, solves_in_flight=8 // n))
    one, two = (sdxl_processes.measured(of(n)) for n in (1, 2))
    assert two["parts"]["averaging"] > one["parts"]["averaging"]
    assert sdxl_processes.difference(two["losses"], one["losses"]) < 1e-4
    assert sdxl_processes.difference(two["losses"][:6], one["losses"][6:]) > 1e-2  # of other updates
