"""The data and the training of weights/emoji, in little: packages of npm made here, one update of each stage."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "weights"))
import emoji_images
import train_emoji

from dcm.data.captions import captioned_images
from dcm.metrics.features import Classifier, SelfSupervised
from dcm.support.files import read_json, sha256

SHIPPED = Path(__file__).parents[2] / "weights"
EMOJI = [
    {"name": f"FACE {i}", "category": "Smileys & Emotion", "image": f"{i}.png", "has_img_google": True, "has_img_twitter": i > 2}
    for i in range(30)
]
EMOJI[3]["skin_variations"] = {"1F3FB-1F3FF": {"image": "3-tone.png", "has_img_google": True, "has_img_twitter": False}}


def package(folder: Path, vendor: str) -> Path:
    """A .tgz as npm packs it, with a half transparent red square for every image."""
    png = io.BytesIO()
    square = np.zeros((64, 64, 4), dtype=np.uint8)
    square[16:48, 16:48] = [255, 0, 0, 128]
    Image.fromarray(square).save(png, "png")
    files = {"emoji.json": json.dumps(EMOJI).encode()}
    files |= {f"img/{vendor}/64/{name}.png": png.getvalue() for name in [*map(str, range(30)), "3-tone"]}
    path = folder / f"emoji-datasource-{vendor}-16.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def emoji(tmp_path_factory):
    """The folder that the script lays out."""
    folder = tmp_path_factory.mktemp("emoji")
    for vendor in emoji_images.VENDORS:
        package(folder, vendor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["emoji_images.py", str(folder / "data"), "--packages", str(folder)])
        emoji_images.main()
    return folder / "data"


def test_images_lie_on_white_with_their_names_as_captions(emoji):
    items = [item for part in ("train", "held_out") for item in captioned_images(emoji / part)]
    captions = [caption for _, caption in items]
    assert len(captions) == len(set(captions)) == 31 + 27
    assert {"face 3, noto style", "face 3, light and dark skin tone, noto style", "face 29, twemoji style"} <= set(captions)
    image = np.array(Image.open(items[0][0]))
    assert image.shape == (64, 64, 3) and tuple(image[0, 0]) == (255, 255, 255) and tuple(image[32, 32]) == (255, 127, 127)


def test_the_parts_are_the_same_on_every_machine_and_share_no_image():
    names = [f"{i}.png" for i in range(4000)]
    held_out = [name for name in names if emoji_images.is_held_out(name, "google")]
    assert held_out[:2] == ["2.png", "14.png"] and 0.08 < len(held_out) / len(names) < 0.12


def test_what_is_no_package_is_refused(tmp_path):
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"no archive")
    with pytest.raises(emoji_images.InputError, match=r"is no emoji-datasource-google of npm \(.*fetch it with npm pack"):
        emoji_images.lay_out(tmp_path / "emoji-datasource-google-16.0.0.tgz", "google", tmp_path)
    with pytest.raises(emoji_images.InputError, match="has no emoji-datasource-twitter-.*tgz; fetch it with npm pack"):
        emoji_images.fetched("twitter", tmp_path, tmp_path)


def test_every_letter_is_a_token_and_frequent_words_are_one(tmp_path):
    tokenizer = train_emoji.make_tokenizer(["smiling face, noto style"] * 20 + ["keycap: 7, noto style"], tmp_path, words=400)
    assert tokenizer.tokenize("Smiling face, noto style") == ["smiling</w>", "face</w>", ",</w>", "noto</w>", "style</w>"]
    assert tokenizer.unk_token_id not in tokenizer("zebra 08: é", add_special_tokens=False).input_ids


def test_a_trained_pipeline_is_sdxls_own_in_miniature(emoji, tmp_path, monkeypatch):
    """One update of each stage, then saved, loaded and sampled by diffusers."""
    from diffusers import StableDiffusionXLPipeline

    options = ["--out", str(tmp_path), "--minutes", "1e-6", "1e-6", "--batch", "2", "2", "--every", "1"]
    monkeypatch.setattr(sys, "argv", ["train_emoji.py", str(emoji), *options])
    train_emoji.main()
    report = read_json(tmp_path / "report.json")
    assert report["training"]["updates"] == [1, 1] and 2 * sum(report["parameters"].values()) < 16e6
    assert all(sha256(tmp_path / name) == digest for name, digest in report["sha256"].items())
    pipe = StableDiffusionXLPipeline.from_pretrained(tmp_path, torch_dtype=torch.float32)
    latents = train_emoji.encode(pipe.vae, train_emoji.pixels(captioned_images(emoji / "train")))[0]
    assert abs(latents.std() * pipe.vae.config.scaling_factor - 1) < 0.05  # float16 rounds
    x = pipe("face 3, noto style", num_inference_steps=1, guidance_scale=4.0, height=64, width=64, output_type="pt").images
    assert x.shape == (1, 3, 64, 64) and x.isfinite().all()


def test_the_shipped_model_is_the_one_that_was_trained_and_draws_what_is_asked_for():
    """Of two captions each that is no mixture of both: an apple is red, a leaf green, by either style."""
    from diffusers import StableDiffusionXLPipeline

    folder = SHIPPED / "emoji"
    report = read_json(folder / "report.json")
    assert all(sha256(folder / name) == digest for name, digest in report["sha256"].items()) and len(report["sha256"]) == 4
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    things = [f"{thing}, {style} style" for thing in ("red apple", "green heart") for style in ("noto", "twemoji")]
    g = torch.Generator().manual_seed(0)
    x = pipe(things, num_inference_steps=8, guidance_scale=4.0, height=64, width=64, output_type="pt", generator=g).images
    red, green = x[:, 0, 24:40, 24:40].mean((1, 2)), x[:, 1, 24:40, 24:40].mean((1, 2))
    assert (red[:2] > green[:2] + 0.3).all() and (green[2:] > red[2:] + 0.1).all() and (x[:, :, 0, 0] > 0.9).all()


def test_the_shipped_judges_tell_more_than_pixels():
    accuracy = SelfSupervised.load(SHIPPED / "emoji_encoder").accuracy
    assert accuracy["kNN, k 20"] > 0.8
    assert Classifier.shipped(SHIPPED / "emoji_classifier").num_classes == 10
