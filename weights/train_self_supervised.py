"""How ``weights/cifar10_encoder``, ``emoji_encoder`` and ``digits_encoder`` were trained, without labels.

    python weights/train_self_supervised.py --images FOLDER --out weights/cifar10_encoder --seconds 440
    python weights/train_self_supervised.py --emoji data/emoji --out weights/emoji_encoder --seconds 300
    python weights/train_self_supervised.py --digits --out weights/digits_encoder

FOLDER holds one folder of images a class (see dcm.data.image_folder), data/emoji is that of emoji_images.py; labels
serve the accuracies alone, which are those of the project's own held-out images. The averaged weights are written with
each report and at the end, as float16; a run cut off before its end leaves the last ones. With --seconds the rates
follow the clock, and compilation counts.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from contrastive import Recipe, State, Views, knn_accuracy, linear_accuracy, train_encoder
from judge_emoji import labelled

from dcm.data.images import ImageSet, digits, image_folder
from dcm.metrics.features import SelfSupervised
from dcm.studies.images.study import HELD_OUT
from dcm.support.processes import find_device, ready_device

# Strokes are no objects: neither mirrored nor cut in half.
DIGITS = Recipe(
    widths=(16, 32, 64), views=Views(area=0.75, flip=False, rotation=10, jitter=0.8, strength=(0.4, 0.4, 0, 0)),
    batch=256, lr=0.2, warmup=20, momentum=0.95, head=256, projection=64, contrast=True,
)  # fmt: skip
EMOJI = Recipe(widths=(32, 64, 128, 256), batch=256, lr=0.2)


def accuracy(encoder, data: ImageSet, linear: bool = False) -> dict[str, float]:
    """Of `encoder` (images -> features) on held-out images."""
    train, test = (encoder(data.images(part)[0]) for part in ("train", "held_out"))
    sets = train, data.train_labels, test, data.held_out_labels
    out = {"kNN, k 200": knn_accuracy(*sets), "kNN, k 20": knn_accuracy(*sets, k=20)}
    return out | ({"linear": linear_accuracy(*sets)} if linear else {})


def parsed() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = arguments.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path)
    source.add_argument("--emoji", type=Path)
    source.add_argument("--digits", action="store_true")
    arguments.add_argument("--out", type=Path, required=True)
    length = arguments.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, help="of the clock, compilation included")
    length.add_argument("--epochs", type=float)
    arguments.add_argument("--every", type=float, default=60, help="seconds between reports")
    arguments.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--held-out", type=int, default=HELD_OUT)
    for name, kind in (("batch", int), ("lr", float), ("warmup", int), ("head", int)):
        arguments.add_argument(f"--{name}", type=kind, help="in place of the recipe's")
    arguments.add_argument("--widths", type=int, nargs="+", help="in place of the recipe's")
    return arguments.parse_args()


def main() -> None:
    """Train and save; see the top of this file."""
    given = parsed()
    device = find_device(given.device)
    ready_device(device, 1 if given.digits else torch.get_num_threads())  # the sums' order depends on it
    changed = {n: v for n in ("batch", "lr", "warmup", "head") if (v := getattr(given, n)) is not None}
    if given.widths:
        changed["widths"] = tuple(given.widths)
    recipe = replace(DIGITS if given.digits else EMOJI if given.emoji else Recipe(), **changed)
    read = labelled(given.emoji) if given.emoji else digits() if given.digits else image_folder(given.images, held_out=given.held_out)
    data = read.to(device)
    epochs = given.epochs or (None if given.seconds else 200)
    compiled = device.type == "cuda" if given.compile is None else given.compile
    settings = {k: v for k, v in asdict(recipe).items() if k != "widths"}

    def save(state: State, finished: bool) -> SelfSupervised:
        encoder = state.model.encoder()
        encoder.accuracy = accuracy(encoder.features, data, linear=finished)
        line = {"updates": state.updates, "epochs": round(state.epochs, 1), "seconds": round(state.seconds, 1)}
        about = {"settings": settings, "training": line | {
            "finished": finished, "images": len(data.train), "data": "digits" if given.digits else (given.emoji or given.images).name,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "torch": torch.__version__,
        }}  # fmt: skip
        encoder.save(given.out, about)
        print(json.dumps(line | {"loss": round(float(state.loss), 4)} | encoder.accuracy), flush=True)
        return encoder

    print(json.dumps({"pixels": accuracy(lambda x: x.flatten(1), data, linear=given.digits)}), flush=True)
    last = time.monotonic()
    for state in train_encoder(data.train, recipe, epochs, given.seconds, compiled, data.peak):
        if time.monotonic() - last > given.every:
            save(state, False)
            last = time.monotonic()
    save(state, True)


if __name__ == "__main__":
    main()
