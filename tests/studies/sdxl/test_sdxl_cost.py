"""Cost, memory, and bad input."""

import json
import shutil
from types import SimpleNamespace

import pytest
import sdxl_dry_run
import tiny_sdxl
import torch
from sdxl_helpers import CPU, batch, teacher_parameters

from dcm.students.lora import TARGETS, LoRAStudents
from dcm.studies.registry import load_study
from dcm.studies.sdxl import memory
from dcm.studies.sdxl import pipeline as sdxl_pipeline
from dcm.support import pretrained
from dcm.support.errors import InputError


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


def interrupted(*_):
    """What the user does."""
    raise KeyboardInterrupt


def test_the_dry_run_on_a_tiny_network(tmp_path, capsys, monkeypatch):
    config, out = tmp_path / "unet.json", tmp_path / "dry_run.json"
    config.write_text(json.dumps(tiny_sdxl.UNET))
    options = "--device cpu --precision fp32 --latent 8 --batch 4 --rank 2 --timed 2 --intervals 20 --slots 3 --microbatch 2"
    command = [*options.split(), "--unet", str(config), "--out", str(out)]
    with monkeypatch.context() as cut_off:
        cut_off.setattr(sdxl_dry_run.DryRun, "solving", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sdxl_dry_run.main(command)
    kept = json.loads(out.with_suffix(".kept.json").read_text())["results"]
    sdxl_dry_run.main(command)
    record = json.loads(out.read_text())
    assert [*kept] == ["CM", "Direct CM", "both"] and record["students"] == kept and not out.with_suffix(".kept.json").exists()
    longest = 20 - sum((k / 20) ** 4 for k in range(1, 20))
    for path, steps in (("paper", longest), ("flight", 10.5)):
        rows = {row["students"]: row for row in record["rows"] if row["path"] == path}
        assert [*rows] == ["CM", "Direct CM", "both"]
        assert rows["CM"]["evaluations"] == 4 * 2 and rows["both"]["evaluations"] == pytest.approx(4 * 2 * steps)
        for name, row in rows.items():
            assert row["seconds"] == pytest.approx(row["teacher_seconds"] + record["students"][name]["seconds"])
    assert record["students"]["both"]["peak_gib"] is None
    assert record["settings"]["guidance"] == 9 and record["settings"]["updates"] == 250  # of sdxl.yaml
    text = capsys.readouterr().out
    assert "random weights" in text and "3 solves in flight" in text and "microbatch 2" in text and "not measured" in text
    assert text.endswith(out.with_suffix(".md").read_text())
    with pytest.raises(SystemExit, match="at SDXL's size needs a GPU, and none is present"):
        sdxl_dry_run.main(["--device", "cpu"])
    with pytest.raises(SystemExit, match="intervals = 3 does not divide"):
        sdxl_dry_run.main(["--device", "cpu", "--intervals", "3"])
    with pytest.raises(SystemExit, match="teacher_precision = 'fp8' needs a GPU with FP8"):
        sdxl_dry_run.main([*options.split(), "--unet", str(config), "--paths", "fp8"])
    with pytest.raises(SystemExit, match="slots = 0 is not possible"):
        sdxl_dry_run.main(["--device", "cpu", "--slots", "0"])


def test_too_little_memory_is_refused_with_what_lowers_it(study):
    students = LoRAStudents(study.network, [0, 1], 2)
    size = sum(p.numel() for p in students.parameters())
    p = SimpleNamespace(gradient_checkpointing=False, optimizer="adamw", width=64, ema=0.0, guidance=[9.0], solves_in_flight=0)
    peak = lambda s, shape, n, trained=True: (10 + (3 if trained else 0.5) * n) * memory.GIB
    need = memory.needed(students, study.teacher.shape, 16, p, peak=peak)
    assert set(need.peaks) == {1, 4} and need.state == size * 4 // 2 + 8 * size
    assert need.total == int(1.05 * ((10 + 3 * 16) * memory.GIB + need.state))
    memory.check(need, need.total, p)
    p.solves_in_flight = 8  # 16 evaluations at once, guided
    assert memory.needed(students, study.teacher.shape, 16, p, peak=peak).total == pytest.approx(need.total + 1.05 * 8 * memory.GIB)
    with pytest.raises(InputError) as error:
        memory.check(need, 40 * memory.GIB, p)
    said = str(error.value)
    assert "needs about 60.9 GiB of GPU memory, and 40.0 GiB can be had" in said and "\n" not in said
    for setting in (
        "gradient_checkpointing = true",
        "microbatch below 16",
        "optimizer = 'adamw8bit'",
        "width below 64",
        "solves_in_flight below 8",
    ):
        assert setting in said
    students.microbatch, p.optimizer, p.ema = 2, "adamw8bit", 0.9
    fewer = memory.needed(students, study.teacher.shape, 16, p, peak=lambda s, shape, n, trained=True: n * memory.GIB)
    assert fewer.samples == 2 and set(fewer.peaks) == {1, 2} and fewer.state == size * 4 // 2 + 2 * size + 4 * size

    def full(*_):
        raise torch.OutOfMemoryError

    with pytest.raises(InputError, match="does not hold 2 samples in training; it is lowered by .*microbatch below 2"):
        memory.needed(students, study.teacher.shape, 16, p, peak=full)

@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "no/such-model"}, "model = 'no/such-model' is not here: .* is no folder, and .* has no whole copy of it"),
        ({"vae": "no/such-vae"}, "vae = 'no/such-vae' is not here"),
        ({"data_dir": "nowhere"}, "nowhere holds no images"),
        ({"data": "builtin"}, "data = 'builtin' is not possible for the study sdxl; allowed: folder"),
        ({"resolution": 100}, "resolution = 100 is not possible; allowed: a whole number, a multiple of 8"),
    ],
)
def test_bad_input_gets_one_sentence_before_any_work(made, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        sdxl_pipeline.prepare(teacher_parameters(made, tmp_path, **change), tmp_path, CPU)
    assert "\n" not in str(error.value) and not (tmp_path / "teacher").exists()


def test_one_screen_says_what_is_missing_and_what_it_costs(made, tmp_path, capsys):
    lacks = {"model": "no/model", "data_dir": "nowhere", "dino": "no/dino", "aesthetic": "none"}
    with pytest.raises(InputError, match="model = 'no/model' is not here"):
        sdxl_pipeline.prepare(teacher_parameters(made, tmp_path, **lacks), tmp_path, CPU)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["model", "data_dir", "inception", "dino", "clip"]
    assert all(line.endswith("Nothing works without it.") for line in lines[:2])
    assert lines[2].endswith("Without it: no FID.") and lines[3].endswith("Without it: no FD-DINOv2.") and lines[4].endswith(made["clip"])


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
        sdxl_pipeline.check_pipeline(copy)
    (copy / "model_index.json").unlink()
    with pytest.raises(InputError, match="holds no pipeline"):
        sdxl_pipeline.check_pipeline(copy)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None if name == "peft" else name)
    with pytest.raises(InputError, match=r"the study sdxl needs peft: install them with pip install -e '.\[sdxl\]'"):
        pretrained.check_packages()


def test_an_eps_student_at_its_start_is_the_teachers_denoiser(study):
    x, t, c = batch(study)
    eps = study.teacher.predict_noise(x, t, c)
    x0_hat = (x - study.teacher.schedule.sigma(t, x) * eps) / study.teacher.schedule.alpha(t, x)
    own = study.f(LoRAStudents(study.network, [0], 2), x[None], t[None], c[None])[0]
    assert torch.allclose(own, x0_hat, atol=1e-4 * float(x0_hat.std()))
