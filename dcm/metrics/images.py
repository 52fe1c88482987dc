"""Quality of image samples, against the teacher's samples and against real images."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from dcm.metrics.distances import NAN, FeatureSet, frechet, kernel_distance, paired_error, precision_recall, sharpness
from dcm.metrics.features import Classifier, PixelFeatures
from dcm.metrics.metric import Metric


@dataclass(frozen=True)
class View:
    """An encoder, and the columns of what is measured on its features."""

    encoder: Any  # see dcm.metrics.features
    to_teacher: str = "fd_teacher"
    to_real: str = "fd_real"
    kernel: str = "kid_teacher"
    precision: str = "precision"
    recall: str = "recall"
    paired: str = "paired"

    @classmethod
    def further(cls, encoder, name: str) -> View:
        """Of an encoder beside the first one."""
        fd = ("fid_teacher", "fid_real") if name == "inception" else (f"fd_{name}", f"fd_{name}_real")
        return cls(encoder, *fd, *(f"{kind}_{name}" for kind in ("kid", "precision", "recall", "paired")))

    @property
    def metrics(self) -> dict[str, Metric]:
        """How the columns read."""
        name = self.encoder.name
        on = {"pixel": "(pixels)", "Inception": "(Inception, mode clean)"}.get(name, f"({name} features)")
        fd, kid = ("FID", "KID") if name == "Inception" else ("Frechet distance", "kernel distance")
        near = "against teacher" if self.precision == "precision" else f"against teacher {on}"
        return {
            self.to_teacher: Metric(f"{fd} to teacher {on}", ratio=True),
            self.to_real: Metric(f"{fd} to held-out images {on}", ratio=True),
            self.kernel: Metric(f"{kid} to teacher {on}"),
            self.precision: Metric(f"precision {near}", lower_is_better=False),
            self.recall: Metric(f"recall {near}", lower_is_better=False),
            self.paired: Metric(f"ODE error, {name} features", ratio=True, judged=False),
        }


class ImageQuality:
    """Quality metrics of image samples.

    Parameters
    ----------
    extractor : features that the primary metric rests on; see :mod:`dcm.metrics.features`.
    classifier : judges whether samples show their class, and is a second encoder where it is not the extractor; where it
        is, the pixels are.
    real : held-out real images (n, C, H, W) in [-1, 1]; where there are none, ``fd_real`` is NaN.
    self_supervised : a further encoder, which no labels taught. inception : another,
        :class:`~dcm.metrics.features.InceptionFeatures`; with None the usual FID and KID are not measured.

    ``fd_teacher``, ``fd_real``: Frechet distance to the teacher's samples from the same noise, and to real images.
    ``kid_teacher``: kernel distance to the teacher's samples. ``precision``, ``recall``: against the teacher's samples.
    ``paired``: the ODE error in feature space, a sample's mean squared distance to the teacher's from the same noise.
    The same six on a further encoder's features have ``classifier``, ``pixels``, ``self`` or ``inception`` in their names;
    see :class:`View`. ``agreement``: share of samples that the classifier assigns to their own class.
    ``sharpness``: see :func:`sharpness`.
    """

    primary, secondary_metrics = "fd_teacher", ("fd_real", "sharpness")

    def __init__(
        self, extractor, classifier: Classifier, real: Tensor | None = None, self_supervised=None, inception=None
    ):
        self.extractor, self.classifier = extractor, classifier
        self.self_supervised, self.inception = self_supervised, inception
        self.real = real if real is not None and len(real) else None
        # A verdict must not hang on one network: beside a classifier's features, small images' pixels.
        further = {"pixels": PixelFeatures()} if classifier is extractor else {"classifier": classifier}
        further |= {"self": self_supervised, "inception": inception}
        self.views = [View(extractor), *(View.further(e, name) for name, e in further.items() if e is not None)]
        self.metrics = self.views[0].metrics | {
            "agreement": Metric("share classified as their class", lower_is_better=False),
            "sharpness": Metric("high-frequency power [teacher = 1]", judged=False),
        }
        for view in self.views[1:]:
            self.metrics |= view.metrics
        self._kept: dict[str, list[FeatureSet]] = {}

    @property
    def note(self) -> str:
        """What stands behind the metrics, for the report."""
        said = f"Features and class agreement: {self.extractor.name}; the classifier is right on"
        said = f"{said} {self.classifier.accuracy:.1%} of held-out images."
        if self.self_supervised is not None:
            near = self.self_supervised.accuracy.get("kNN, k 20", NAN)
            said += f" By nearest neighbours in the features of the encoder that had no labels {near:.1%} are."
        return f"{said} {self.not_measured}".strip()

    @property
    def not_measured(self) -> str:
        """One sentence on what is missing, if anything is."""
        missing = ["fd_real (no held-out real images)"] if self.real is None else []
        if self.inception is None:
            missing.append("FID and KID on Inception features (no weights)")
        return f"Not measured: {', '.join(missing)}." if missing else ""

    def _seen(self, x: Tensor) -> list[FeatureSet]:
        """Images in the eyes of every view."""
        return [FeatureSet(view.encoder.features(x)) for view in self.views]

    @cached_property
    def _real(self) -> list[FeatureSet]:
        return self._seen(self.real)

    def _teachers(self, x: Tensor) -> list[FeatureSet]:
        """The teacher's samples in the eyes of every view; kept by content, since every student is compared with them."""
        key = hashlib.sha256(x.cpu().contiguous().numpy()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._seen(x)
        return self._kept[key]

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of samples `x` (B, C, H, W) of classes `condition` (B,), against `teacher_x` (B, C, H, W).

        Row i of both is from the same noise. What cannot be measured is NaN. Values outside [-1, 1] are clamped.
        """
        x, teacher_x = x.float().clamp(-1, 1), teacher_x.float().clamp(-1, 1)
        out: dict[str, float] = {}
        for i, (view, own, teacher) in enumerate(zip(self.views, self._seen(x), self._teachers(teacher_x))):
            out[view.to_teacher] = frechet(own, teacher)
            out[view.to_real] = NAN if self.real is None else frechet(own, self._real[i])
            out[view.kernel], out[view.paired] = kernel_distance(own, teacher), paired_error(own, teacher)
            out[view.precision], out[view.recall] = precision_recall(own, teacher)
        out["agreement"] = float((self.classifier.classify(x) == condition.cpu()).double().mean())
        out["sharpness"] = sharpness(x, teacher_x)
        return {name: out[name] for name in self.metrics}
