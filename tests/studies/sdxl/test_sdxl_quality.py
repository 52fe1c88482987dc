"""Metrics of SDXL samples."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sdxl
import torch
from sdxl_helpers import CPU

from dcm.evaluation.samples import EvaluationSet
from dcm.evaluation.share import measure_quality
from dcm.metrics.captioned import METRICS
from dcm.metrics.encoders import ClipScores, DinoFeatures, aesthetic_head, own_encoders
from dcm.metrics.features import Classifier, SelfSupervised
from dcm.parameters.notebooks import SampleQualityParameters
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import sha256


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
    assert "fid_teacher" not in own and "FID to teacher (Inception, mode clean) is not measured" in study.quality.note
    assert study.quality.primary == "fd_teacher"
    for name, paired in (("fd_teacher", "paired"), ("fd_dino", "paired_dino")):
        assert own[name] < 0.01 * noisy[name] and own[paired] == 0 and noisy[name] < noisy[paired] * 1.2 + 1e-9
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
        "has no whole copy of it",
    ):
        assert text in quality.note
    assert set(quality.encoders.missing) == {"fid_teacher", "fd_dino", "clip_score", "aesthetic"}
    assert quality.primary == "fd_teacher" and quality.secondary_metrics == ("sharpness",)
    assert [*quality.metrics] == ["fd_teacher", "sharpness", "paired"]
    quality.encoders.features.clear()  # it would be measured, and takes seconds
    del quality.metrics
    assert quality.measure(x := torch.randn(4, 4, 8, 8), torch.arange(4), x) == {"sharpness": 1}


def test_an_encoder_that_comes_later_measures_what_was_measured_without_it(made, prepared, distilled, tmp_path):
    p = SampleQualityParameters(study="sdxl", run_dir=str(prepared), samples=16, steps=[1], groups=["main"], device="cpu")
    calls = []

    def measured(clip: ClipScores | None, by: str = "") -> list[dict]:
        study = load_study("sdxl", prepared, CPU)
        study.measured_by += by
        study.quality.encoders = SimpleNamespace(features={}, missing={}, clip=clip)
        looked_at = study.quality._looked_at
        study.quality._looked_at = lambda *a: (calls.append(1), looked_at(*a))[1]
        calls.clear()
        return [*measure_quality(EvaluationSet(study, tmp_path, 16, 0, CPU), [distilled], p)]

    assert all({"sharpness"} == set(row) & set(METRICS) for row in measured(None)) and calls
    clip = ClipScores(made["clip"], CPU)
    assert all(math.isfinite(row["clip_score"]) for row in measured(clip)) and calls
    assert measured(clip) and not calls  # kept
    assert measured(clip, by="another") and calls


def test_clip_and_aesthetic_scores_by_hand(made):
    from transformers import CLIPModel

    head = aesthetic_head(made["aesthetic"], 12)
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
        w = [head.state_dict()[f"{k}.weight"].double() for k in (0, 2, 4, 6, 7)]
        b = [head.state_dict()[f"{k}.bias"].double() for k in (0, 2, 4, 6, 7)]
        score = out.image_embeds.double()
        for matrix, bias in zip(w, b):
            score = score @ matrix.T + bias
    assert np.allclose(scores["aesthetic"], score[:, 0], atol=1e-5)
    assert [tuple(m.shape) for m in w] == [(1024, 12), (128, 1024), (64, 128), (16, 64), (1, 16)]
    with pytest.raises(InputError, match="is no aesthetic predictor"):
        aesthetic_head(made["aesthetic"])  # made for embeddings of 12, not 768


def test_dino_features_are_the_normed_class_token(made):
    from transformers import Dinov2Model

    features = DinoFeatures(made["dino"], CPU, size=28)
    x = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (((x + 1) * 127.5).round() / 255 - mean[:, None, None]) / deviation[:, None, None]
    with torch.no_grad():
        theirs = Dinov2Model.from_pretrained(made["dino"]).eval()(pixels).pooler_output
    assert np.allclose(features.features(x), theirs, atol=1e-5)


def test_networks_of_our_own_measure_small_pictures(prepared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(prepared / "teacher", folder / "teacher")
    about = json.loads((folder / "teacher/teacher.json").read_text())
    Classifier((3, 64, 64), 2, 8).save(tmp_path / "judge/weights.safetensors")
    digest = sha256(tmp_path / "judge/weights.safetensors")
    (tmp_path / "judge/config.json").write_text(json.dumps({"sha256": digest}))
    SelfSupervised(3, (4, 8)).eval().save(tmp_path / "encoder", {})
    about |= {"clip": "none", "dino": "none", "encoder": str(tmp_path / "encoder"), "classifier": str(tmp_path / "judge")}
    (folder / "teacher/teacher.json").write_text(json.dumps(about))
    quality = load_study("sdxl", folder, CPU).quality
    assert [*quality.encoders.features] == ["fd_teacher", "fd_self", "fd_classifier"]
    assert "FD-DINOv2 to teacher is not measured: dino is none." in quality.note
    x = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    own, other = (quality.measure(v, torch.arange(6), x) for v in (x, x.flip(1)))
    for name in ("fd_self", "fd_classifier", "paired_self", "paired_classifier"):
        assert abs(own[name]) < 1e-6 < other[name]
    (tmp_path / "judge/weights.safetensors").write_bytes(b"altered")
    with pytest.raises(InputError, match="judge/weights.safetensors .*SHA-256"):
        own_encoders(about, CPU)
    with pytest.raises(InputError, match="config.json is missing; restore it"):
        own_encoders(about | {"classifier": str(tmp_path)}, CPU)
