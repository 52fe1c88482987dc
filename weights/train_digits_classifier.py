"""How ``weights/digits_classifier`` was trained: ``python weights/train_digits_classifier.py``, seconds on two cores.

Its features and its judgement of classes stand behind the study digits' metrics. Another processor's sums differ in
their last digits, which training carries on to a percent of every Frechet distance: hence one file for all.
"""

import argparse
from pathlib import Path

import torch

from dcm.data.images import digits
from dcm.metrics.features import train_classifier
from dcm.studies.images.prepare import CLASSIFIERS
from dcm.support.files import sha256, write_json


def main() -> None:
    """Train and save; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent / "digits_classifier")
    out = arguments.parse_args().out
    torch.set_num_threads(2)  # the sums' order depends on it
    classifier = train_classifier(digits(), **CLASSIFIERS["digits"])
    classifier.save(out / "weights.safetensors")
    about = {"settings": CLASSIFIERS["digits"], "held-out accuracy": classifier.accuracy, "torch": torch.__version__}
    write_json(out / "config.json", {"sha256": sha256(out / "weights.safetensors"), **about})


if __name__ == "__main__":
    main()
