"""How ``weights/digits_classifier`` and ``weights/cifar10_classifier`` were trained: seconds on two cores, and on a GPU.

    python weights/train_classifier.py
    python weights/train_classifier.py --images FOLDER

FOLDER holds CIFAR-10 with one folder a class. Features and judgement of classes stand behind the studies' metrics. Another
processor's sums differ in their last digits, which training carries on to a percent of every Frechet distance: hence one
file for all.
"""

import argparse
from pathlib import Path

import torch

from dcm.data.images import digits, image_folder
from dcm.metrics.features import Classifier, train_classifier
from dcm.studies.images.prepare import CLASSIFIERS
from dcm.studies.images.study import HELD_OUT
from dcm.support.files import sha256, write_json
from dcm.support.processes import find_device


def keep(classifier: Classifier, settings: dict, folder: Path) -> None:
    """Write what :meth:`Classifier.shipped` reads."""
    classifier.save(folder / "weights.safetensors")
    about = {"settings": settings, "held-out accuracy": classifier.accuracy, "torch": torch.__version__}
    write_json(folder / "config.json", {"sha256": sha256(folder / "weights.safetensors"), **about})


def main() -> None:
    """Train and save; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=Path)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    study = "cifar10" if given.images else "digits"
    out, device = given.out or Path(__file__).parent / f"{study}_classifier", find_device("auto" if given.images else "cpu")
    torch.set_num_threads(2)  # the sums' order depends on it
    images = image_folder(given.images, held_out=HELD_OUT, flip=True) if given.images else digits()
    classifier = train_classifier(images.to(device), **CLASSIFIERS[study])
    keep(classifier, CLASSIFIERS[study], out)


if __name__ == "__main__":
    main()
