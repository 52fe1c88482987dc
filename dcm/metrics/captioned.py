"""Quality of SDXL samples: FID and FD-DINOv2 against the teacher's samples, CLIP score, LAION aesthetic score."""

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from dcm.metrics.distances import NAN, FeatureSet, frechet, paired_error, radial_power, sharpness
from dcm.metrics.encoders import Encoders
from dcm.metrics.metric import ENCODERS, Metric
from dcm.support.progress import tqdm

METRICS = {
    "fid_teacher": Metric("FID to teacher (Inception, mode clean)", ratio=True),
    "fd_dino": Metric("FD-DINOv2 to teacher", ratio=True),
    "clip_score": Metric("CLIP score (cosine)", lower_is_better=False),
    "aesthetic": Metric("LAION aesthetic score", lower_is_better=False),
    "fd_teacher": Metric("Frechet distance to teacher (EfficientNet-Lite0 features)", ratio=True),
    "fd_classifier": Metric("Frechet distance to teacher (classifier features)", ratio=True),
    "fd_self": Metric("Frechet distance to teacher (self-supervised features)", ratio=True),
    "sharpness": Metric("high-frequency power [teacher = 1]", judged=False),
} | {
    column: Metric(f"ODE error, {name} features", ratio=True, judged=False)
    for name, (_, _, column) in ENCODERS["sdxl"].items()
}  # fmt: skip


class SDXLQuality:
    """Quality metrics of latents, on their decoded images.

    Parameters
    ----------
    pictures : latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1]. captions : of condition 0, 1, ..
    find : gives the :class:`Encoders`, when they are first needed: training does not need them. batch : images looked at
        at once.

    Frechet distances are to the teacher's samples from the same noise, solver, N and w, as in the paper; ``paired``,
    ``paired_inception``, ``paired_dino`` and ``sharpness`` as in :mod:`dcm.metrics.images`.
    """

    def __init__(self, pictures, captions: list[str], find: Callable[[], Encoders], batch: int = 16):
        self.pictures, self.captions, self._find, self.batch = pictures, captions, find, batch

    @cached_property
    def encoders(self) -> Encoders:
        """What is on this machine."""
        return self._find()

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """What is measured on this machine; an encoder that comes later adds its own, and all is measured anew."""
        features, clip = self.encoders.features, self.encoders.clip
        there = {name for distance, _, paired in ENCODERS["sdxl"].values() if distance in features for name in (distance, paired)}
        there |= {"sharpness"} | ({"clip_score"} if clip else set()) | ({"aesthetic"} if clip and clip.head else set())
        return {name: metric for name, metric in METRICS.items() if name in there}

    @property
    def primary(self) -> str:
        """What the verdict rests on: FID as in the paper, or the features whose weights are always here."""
        return "fid_teacher" if "fid_teacher" in self.encoders.features else "fd_teacher"

    @property
    def secondary_metrics(self) -> tuple[str, ...]:
        """CLIP score where it is measured, and sharpness."""
        return ("clip_score", "sharpness") if self.encoders.clip else ("sharpness",)

    @property
    def note(self) -> str:
        """One line on what is measured and what is not, and why."""
        told = [f"{METRICS[name].label} is not measured: {why}" for name, why in self.encoders.missing.items()]
        return " ".join(["Quality is measured on decoded images, against the teacher's from the same noise.", *told])

    def _looked_at(self, x: Tensor, condition: Tensor) -> dict[str, Any]:
        """Features, scores and power spectra of latents `x`; images are decoded a few at a time, once."""
        parts, starts = [], range(0, len(x), self.batch)
        for i in tqdm(starts, desc="decode and encode", unit="batch", disable=len(starts) < 4, leave=False):
            images = self.pictures(x[i : i + self.batch])
            part = {name: e.features(images) for name, e in self.encoders.features.items()}
            if self.encoders.clip:
                asked = [self.captions[c] for c in condition[i : i + self.batch].tolist()]
                part |= self.encoders.clip.scores(images, asked)
            parts.append(part | {"power": radial_power(images).expand(len(images), -1)})
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: FeatureSet(v) if name in self.encoders.features else v for name, v in joined.items()}

    @cache  # noqa: B019 - a quality lasts as long as its notebook
    def _teachers(self, x: Tensor, condition: Tensor) -> dict[str, Any]:
        """What every student is compared with, looked at once."""
        return self._looked_at(x, condition)

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of latents `x` (B, C, h, w) of prompts `condition` (B,), against `teacher_x`; NaN where a sample is not finite."""
        out = dict.fromkeys(self.metrics, NAN)
        if not x.isfinite().all():
            return out
        teacher = self._teachers(teacher_x, condition)
        own = teacher if x is teacher_x else self._looked_at(x, condition)
        for distance, _, paired in ENCODERS["sdxl"].values():
            if distance in self.encoders.features:
                sets = own[distance], teacher[distance]
                out |= {distance: frechet(*sets), paired: paired_error(*sets)}
        out |= {name: float(own[name].mean()) for name in ("clip_score", "aesthetic") if name in own}
        out["sharpness"] = sharpness(own["power"].mean(0), teacher["power"].mean(0))
        return out
