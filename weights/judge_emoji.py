"""How good ``weights/emoji`` is: samples of captions against images that it never saw, and a grid to look at.

    python weights/judge_emoji.py data/emoji --model weights/emoji

Written into the model's report.json: by guidance w, the Frechet distance between samples of held-out captions and the
held-out images in EfficientNet-Lite0's features, beside that of as many training images; and how many samples a small
classifier of the ten categories, trained on the training images, puts into their own, beside held-out images. The
classifier is kept beside the model, as ``emoji_classifier``: the study judges by it, too. The grid has the name of an emoji
a row in both styles, and of none in the last rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor
from train_classifier import keep
from train_emoji import SIZE, pixels

from dcm.data.captions import captioned_images
from dcm.data.images import ImageSet
from dcm.metrics.distances import FeatureSet, frechet
from dcm.metrics.encoders import EfficientNetFeatures
from dcm.metrics.features import train_classifier
from dcm.support.files import read_json, write_json

STEPS = 50
SHOWN = [
    "grinning face", "red apple", "cat face", "waving hand sign, dark skin tone", "sun with face", "slice of pizza",
    "rocket", "japan flag", "soccer ball", "heavy black heart", "red cat", "green heart with face",
]  # fmt: skip


def labelled(folder: Path) -> ImageSet:
    """All emoji below `folder`, with their categories as classes; each part in the order of its paths."""
    parts: list[Tensor] = []
    names: tuple[str, ...] = ()
    for part in (folder / "train", folder / "held_out"):
        rows = map(json.loads, (part / "metadata.jsonl").read_text().splitlines())
        category = {row["file_name"]: row["category"] for row in rows}
        names, items = names or tuple(sorted(set(category.values()))), captioned_images(part)
        parts += [pixels(items), torch.tensor([names.index(category[path.relative_to(part).as_posix()]) for path, _ in items])]
    return ImageSet(*parts, classes=names)


def draw(pipe, captions: list[str], guidance: float, batch: int = 256) -> Tensor:
    """Samples (n, 3, 64, 64) in [-1, 1], on the CPU, by diffusers' own pipeline."""
    g = torch.Generator().manual_seed(0)
    options = dict(num_inference_steps=STEPS, guidance_scale=guidance, height=SIZE, width=SIZE, output_type="pt", generator=g)
    parts = [pipe(captions[i : i + batch], **options).images for i in range(0, len(captions), batch)]
    return 2 * torch.cat(parts).float().cpu() - 1


def grid(pipe, guidance: list[float]) -> Image.Image:
    """A caption a row, a guidance scale two columns: one style each."""
    rows = [draw(pipe, [f"{name}, {style} style" for name in SHOWN for style in ("noto", "twemoji")], w) for w in guidance]
    cells = torch.stack(rows).reshape(len(rows), len(SHOWN), 2, 3, SIZE, SIZE).permute(1, 4, 0, 2, 5, 3)
    picture = cells.reshape(len(SHOWN) * SIZE, len(rows) * 2 * SIZE, 3)
    return Image.fromarray(((picture + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8))


def main() -> None:
    """Draw, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "emoji")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 4.0, 9.0])
    parser.add_argument("--count", type=int, default=783, help="samples, of the first held-out captions")
    parser.add_argument("--updates", type=int, default=3000, help="of the classifier")
    asked = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipe = StableDiffusionXLPipeline.from_pretrained(asked.model, torch_dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    data, captions = labelled(asked.data), [caption for _, caption in captioned_images(asked.data / "held_out")]
    n, theirs = min(asked.count, len(captions)), data.held_out_labels
    classifier = train_classifier(data.to(device), asked.updates)
    keep(classifier, {"updates": asked.updates}, asked.model.with_name(f"{asked.model.name}_classifier"))
    features = lambda x: FeatureSet(EfficientNetFeatures(device).features(x))
    held_out = features(data.unit(data.held_out[:n]))
    some = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:n]
    found = {"images": n, "steps": STEPS, "held-out images put into their category": round(classifier.accuracy, 4)}
    found["Frechet distance of as many training images"] = round(frechet(features(data.unit(data.train[some])), held_out), 3)
    for w in asked.guidance:
        x = draw(pipe, captions[:n], w)
        right = (classifier.classify(x.to(device)).cpu() == theirs[:n]).float().mean().item()
        found[f"w = {w:g}"] = {"Frechet distance": round(frechet(features(x), held_out), 3), "in their category": round(right, 4)}
    write_json(asked.model / "report.json", read_json(asked.model / "report.json") | {"quality": found})
    print(json.dumps(found, indent=1))
    grid(pipe, asked.guidance).save(asked.model / "grid.png")


if __name__ == "__main__":
    main()
