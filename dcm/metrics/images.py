"""Quality of image samples, against the teacher's samples and against real images."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from threading import Lock
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from torch import Tensor

from dcm.metrics.distances import NAN, check_scipy, frechet, kernel_distance, precision_recall, sharpness
from dcm.metrics.features import Classifier, PixelFeatures
from dcm.metrics.metric import Metric

COSTLY = 1000  # features from which on a Frechet distance takes seconds


class ImageQuality:
    """Quality metrics of image samples.

    Parameters
    ----------
    extractor : features that the primary metric rests on; see :mod:`dcm.metrics.features`.
    classifier : judges whether samples show their class, and is a second encoder where it is not the extractor.
    real : held-out real images (n, C, H, W) in [-1, 1]; where there are none, ``fd_real`` is NaN.
    inception : :class:`~dcm.metrics.features.InceptionFeatures`, or None: FID and KID are then not measured.

    ``fd_teacher``, ``fd_real``: Frechet distance to the teacher's samples from the same noise, and to real images.
    ``kid_teacher``: kernel distance to the teacher's samples. The same three on the classifier's features have
    ``classifier`` in their names, or, where those are the extractor's, on the pixels ``pixels``. ``precision``,
    ``recall``: against the teacher's samples. ``agreement``: share of samples that the classifier assigns to their own
    class. ``sharpness``: see :func:`sharpness`. Raises :class:`InputError` for a SciPy that clean-fid does not work with.
    """

    primary, secondary_metrics = "fd_teacher", ("fd_real", "sharpness")

    def __init__(self, extractor, classifier: Classifier, real: Tensor | None = None, inception=None):
        check_scipy()
        self.extractor, self.classifier, self.inception = extractor, classifier, inception
        self.real = real if real is not None and len(real) else None
        self.views: list[tuple[Any, tuple[str, ...]]] = []  # encoders, with the names of the three distances
        self.metrics: dict[str, Metric] = {}
        self._view(extractor, "fd_teacher fd_real kid_teacher", f"{extractor.name} features")
        self.metrics |= {
            "precision": Metric("precision against teacher", lower_is_better=False),
            "recall": Metric("recall against teacher", lower_is_better=False),
            "agreement": Metric("share classified as their class", lower_is_better=False),
            "sharpness": Metric("high-frequency power [teacher = 1]", judged=False),
        }
        # A verdict must not hang on one network: beside a classifier's features, small images' pixels.
        if classifier is extractor:
            self._view(PixelFeatures(), "fd_pixels fd_pixels_real kid_pixels", "pixels")
        else:
            self._view(classifier, "fd_classifier fd_classifier_real kid_classifier", "classifier features")
        if inception is not None:
            self._view(inception, "fid_teacher fid_real kid_inception", "Inception, mode clean", "FID", "KID")
        self._kept: dict[tuple[str, str], np.ndarray] = {}
        self._keeping = Lock()
        self._kept_by: dict[tuple[str, str], Lock] = {}

    def _view(
        self, encoder, names: str, features: str, frechet: str = "Frechet distance", kernel: str = "kernel distance"
    ) -> None:
        to_teacher, to_real, by_kernel = names.split()
        self.views.append((encoder, (to_teacher, to_real, by_kernel)))
        self.metrics |= {
            to_teacher: Metric(f"{frechet} to teacher ({features})", ratio=True),
            to_real: Metric(f"{frechet} to held-out images ({features})", ratio=True),
            by_kernel: Metric(f"{kernel} to teacher ({features})"),
        }

    @property
    def note(self) -> str:
        """What stands behind the metrics, for the report."""
        said = f"Features and class agreement: {self.extractor.name}; the classifier is right on"
        return f"{said} {self.classifier.accuracy:.1%} of held-out images. {self.not_measured}".strip()

    @property
    def not_measured(self) -> str:
        """One sentence on what is missing, if anything is."""
        missing = ["fd_real (no held-out real images)"] if self.real is None else []
        if self.inception is None:
            missing.append("FID and KID on Inception features (no weights)")
        return f"Not measured: {', '.join(missing)}." if missing else ""

    @property
    def workers(self) -> int:
        """Sets of samples worth measuring side by side: where features are many, one a core, two cores left free."""
        return max(1, (os.cpu_count() or 1) - 2) if self.extractor.hidden >= COSTLY else 1

    @cached_property
    def _processes(self) -> ProcessPoolExecutor:
        """For what holds Python's lock for seconds: the matrix roots of Frechet distances. Each on one thread."""
        context = get_context("spawn")  # a GPU's context does not survive a fork
        return ProcessPoolExecutor(self.workers, context, initializer=threadpool_limits, initargs=(1,))

    def _frechet(self, a: np.ndarray, b: np.ndarray) -> float:
        return frechet(a, b) if self.workers == 1 else self._processes.submit(frechet, a, b).result()

    def _features(self, extractor, x: Tensor, keep: bool = False) -> np.ndarray:
        """Features of `x`; kept by content when they will be asked for again."""
        if not keep:
            return extractor.features(x)
        key = (extractor.name, hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest())
        with self._keeping:
            own = self._kept_by.setdefault(key, Lock())
        with own:  # several may ask at once for what is not yet known
            if key not in self._kept:
                self._kept[key] = extractor.features(x)
            return self._kept[key]

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of samples `x` (B, C, H, W) of classes `condition` (B,), against `teacher_x` (B, C, H, W).

        May be called from several threads. What cannot be measured is NaN. Values outside [-1, 1] are clamped.
        """
        x, teacher_x = x.float().clamp(-1, 1), teacher_x.float().clamp(-1, 1)
        out, real = {}, self.real
        for extractor, names in self.views:
            own, teacher = self._features(extractor, x), self._features(extractor, teacher_x, keep=True)
            out[names[0]] = self._frechet(own, teacher)
            out[names[1]] = NAN if real is None else self._frechet(own, self._features(extractor, real, keep=True))
            out[names[2]] = kernel_distance(own, teacher)
            if extractor is self.extractor:
                out["precision"], out["recall"] = precision_recall(own, teacher)
        out["agreement"] = float((self.classifier.classify(x) == condition.cpu()).double().mean())
        out["sharpness"] = sharpness(x, teacher_x)
        return {name: out[name] for name in self.metrics}
