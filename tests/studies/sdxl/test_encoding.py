"""Captions and images, encoded once."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_sdxl
import torch
from sdxl_helpers import CPU, teacher_parameters

from dcm.data import captions
from dcm.studies.registry import load_study
from dcm.studies.sdxl import pipeline as sdxl_pipeline
from dcm.support.errors import InputError
from dcm.support.files import read_json, write_json


def test_the_cache_is_what_the_pipeline_encodes(study, pipe):
    """Prompt embeddings as the pipeline's own; latents within the posterior of its autoencoder."""
    from PIL import Image

    theirs, _, pooled, _ = pipe.encode_prompt(tiny_sdxl.CAPTIONS[1], do_classifier_free_guidance=False)
    text, added = study.data.prompts.of(study.data.prompts.as_trained(torch.tensor([1])), torch.float32)
    assert torch.allclose(text, theirs, atol=1e-6) and torch.allclose(added["text_embeds"], pooled, atol=1e-6)
    assert added["time_ids"][0].tolist()[:2] == [72, 68]  # image 1 is 72 high and 68 wide
    size_ids = study.data.prompts.size_ids
    assert (size_ids[:, 4:] == 64).all() and (size_ids[:, 2:4] >= 0).all()
    folder = Path(pipe.config._name_or_path).parent / "images"
    image = Image.open(folder / "0000.png").convert("RGB")
    assert (image.height, image.width) == (64, 72)  # the shorter side is 64 already: no resizing
    left = int(size_ids[0, 3])
    x = torch.from_numpy(np.array(image))[:, left : left + 64].permute(2, 0, 1)[None] / 127.5 - 1
    posterior = pipe.vae.encode(x).latent_dist
    z = (study.data.latents[0] / 0.13025 - posterior.mean[0]) / posterior.std[0]
    assert 0.7 < z.detach().std().item() < 1.3 and abs(z.detach().mean().item()) < 0.3


def test_evaluation_asks_for_whole_images_and_training_for_its_own(study):
    """As pipelines do, the paper's evaluation with them; the null prompt goes with either."""
    prompts, ids = study.data.prompts, lambda c: study.data.prompts.of(c, torch.float32)[1]["time_ids"]
    every = torch.arange(len(prompts))
    drawn = study.data.draw(torch.Generator().manual_seed(0), 50)[1]
    assert torch.equal(ids(drawn), prompts.size_ids[drawn % len(prompts)].float()) and len(set(map(tuple, ids(drawn).tolist()))) > 1
    assert ids(every).tolist() == len(every) * [[64, 64, 0, 0, 64, 64]]
    for c in (every, prompts.as_trained(every)):
        text, added = prompts.of(prompts.null(c), torch.float32)
        assert not text.any() and not added["text_embeds"].any() and torch.equal(added["time_ids"], ids(c))
        assert torch.equal(prompts.null(prompts.null(c)), prompts.null(c)) and prompts.of(c, torch.float32)[0].any()


def test_students_and_samples_of_other_images_are_not_taken_for_these(made, prepared, study, tmp_path):
    again = shutil.copytree(made["data_dir"], tmp_path / "images")
    sdxl_pipeline.prepare(teacher_parameters(made, tmp_path, data_dir=str(again)), tmp_path, CPU)
    assert load_study("sdxl", tmp_path, CPU).teacher_id == study.teacher_id  # wherever they lie
    (again / "0000.txt").write_text("another caption")
    sdxl_pipeline.prepare(teacher_parameters(made, tmp_path, data_dir=str(again)), tmp_path, CPU)
    assert load_study("sdxl", tmp_path, CPU).teacher_id != study.teacher_id


def test_an_autoencoder_that_does_not_overflow_works_in_half_precision(made, prepared, tmp_path):
    about = read_json(prepared / "teacher/teacher.json")
    vae = shutil.copytree(Path(made["model"]) / "vae", tmp_path / "vae")
    of = lambda upcast, precision: (
        write_json(vae / "config.json", read_json(vae / "config.json") | {"force_upcast": upcast}),
        sdxl_pipeline.load_vae(about | {"vae": str(vae), "precision": precision}, CPU).dtype,
    )[1]
    assert [of(False, p) for p in ("bf16", "fp16", "fp32")] == [torch.float16, torch.float16, torch.float32]
    assert [of(True, p) for p in ("bf16", "fp16", "fp32")] == 3 * [torch.float32]


def test_captions_of_metadata_are_read_whole(tmp_path):
    """With separators that end lines elsewhere, in folders below, and as spreadsheets write them."""
    (tmp_path / "train").mkdir()
    for name in ("a.png", "b.png", "train/c.png"):
        (tmp_path / name).touch()
    written = {"a.png": "a red\u2028cat", "b.png": "a cat\non a \x85mat", "train/c.png": "a\u2028 dog"}
    with open(tmp_path / "metadata.csv", "w", encoding="utf-8-sig", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([("file_name", "text"), *((name, written[name]) for name in ("a.png", "b.png"))])
    line = json.dumps({"file_name": "c.png", "text": written["train/c.png"]}, ensure_ascii=False)
    (tmp_path / "train/metadata.jsonl").write_text(f"{line}\n", encoding="utf-8")
    assert {p.relative_to(tmp_path).as_posix(): caption for p, caption in captions.captioned_images(tmp_path)} == written
    (tmp_path / "train/metadata.jsonl").unlink()
    (tmp_path / "train/c.txt").write_bytes("née".encode("latin-1"))
    with pytest.raises(InputError, match="train/c.txt cannot be read .*; captions are UTF-8"):
        captions.captioned_images(tmp_path)


def test_the_autoencoder_goes_without_cudnns_search(study, monkeypatch):
    """Which is on before and after, an error included."""
    searched, decode = [], study.vae.decode
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(study.vae, "decode", lambda *a, **k: (searched.append(torch.backends.cudnn.benchmark), decode(*a, **k))[1])
    study.pictures(torch.zeros(1, *study.teacher.shape))
    with pytest.raises(RuntimeError):
        study.pictures(torch.zeros(1, 1, 1))
    assert searched and not any(searched) and torch.backends.cudnn.benchmark


def test_an_interrupted_encoding_goes_on_and_nothing_half_written_is_used(made, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "SHARD", 2)
    p, cache = teacher_parameters(made, tmp_path), tmp_path / "teacher/cache"
    real, calls = sdxl_pipeline.Encoder.encode, []

    def dies(self, rows, items):
        calls.append(rows.start)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, rows, items)

    monkeypatch.setattr(sdxl_pipeline.Encoder, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        sdxl_pipeline.prepare(p, tmp_path, CPU)
    assert [f.name for f in cache.iterdir()] == ["00000.safetensors"] and not (
        tmp_path / "teacher/teacher.json"
    ).exists()
    sdxl_pipeline.prepare(p, tmp_path, CPU)
    assert calls == [0, 2, 2, 4]
    # Encoded two at a time or all at once: item i depends on (seed, i) alone.
    whole = captions.CachedLatents.load(cache, 6)
    monkeypatch.setattr(captions, "SHARD", 64)
    once = captions.CachedLatents.load(prepared / "teacher/cache", 6)
    assert torch.allclose(whole.latents, once.latents, atol=1e-5)
    assert torch.equal(whole.prompts.size_ids, once.prompts.size_ids)
    # A damaged file is made anew, whole ones are left alone.
    monkeypatch.setattr(captions, "SHARD", 2)
    (cache / "00001.safetensors").write_bytes((cache / "00001.safetensors").read_bytes()[:-9])
    before = (cache / "00000.safetensors").stat().st_mtime_ns
    sdxl_pipeline.prepare(p, tmp_path, CPU)
    assert torch.equal(captions.CachedLatents.load(cache, 6).latents, whole.latents)
    assert (cache / "00000.safetensors").stat().st_mtime_ns == before


def test_captions_that_are_too_long_are_counted(made, tmp_path, capsys):
    """The tokenizer's tokens are letters, twelve with both ends."""
    p = teacher_parameters(made, tmp_path)
    sdxl_pipeline.prepare(p, tmp_path, CPU)
    assert "4 of 6 captions are longer than the tokenizer takes; what is beyond is cut." in capsys.readouterr().out


def test_captions_in_metadata_files(tmp_path):
    tiny_sdxl.write_images(tmp_path, 3)
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": f"{i:04d}.png", "text": f"caption {i}"}) for i in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert [c for _, c in captions.captioned_images(tmp_path)] == ["caption 0", "caption 1", "caption 2"]
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,caption\n0000.png,a\n0001.png,b\n0002.png,\n")
    with pytest.raises(InputError, match="1 of 3 images in .* have no caption, 0002.png the first"):
        captions.captioned_images(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,caption\n0000.png,a\n")
    with pytest.raises(InputError, match="column file_name"):
        captions.captioned_images(tmp_path)
