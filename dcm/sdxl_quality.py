"""Quality of SDXL samples: FID and FD-DINOv2 against the teacher's samples, CLIP score, LAION aesthetic score.

Each encoder says which weights it needs and where it looks for them; what it does not find is not measured (NaN).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dcm.artifacts import project_path, read_tensors
from dcm.errors import InputError
from dcm.features import INCEPTION_FILE, EfficientNetFeatures, InceptionFeatures, _resized
from dcm.image_quality import NAN, check_scipy, frechet, radial_power
from dcm.metrics import Metric
from dcm.progress import tqdm

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
DECODED = 16  # images decoded at once


class TransformerImages:
    """What DINOv2 and CLIP share: images resized by clean-fid's bicubic resizer and normalised."""

    def __init__(self, size: int, norm: tuple, device: torch.device | str):
        from cleanfid.resize import make_resizer

        self.size, self.device = size, device
        self.resize = make_resizer("PIL", False, "bicubic", (size, size))
        self.mean, self.deviation = (torch.tensor(v, device=device).reshape(3, 1, 1) for v in norm)

    def prepared(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the encoder takes them: (B, 3, size, size)."""
        return (_resized(x, self.size, self.resize).to(self.device) / 255 - self.mean) / self.deviation


class DinoFeatures(TransformerImages):
    """DINOv2's class token after the last norm, of images of 224 pixels (Stein et al. 2023).

    `folder` holds a ``transformers`` Dinov2Model (the paper's is ViT-L/14).
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", size: int = 224):
        from transformers import Dinov2Model

        super().__init__(size, IMAGENET, device)
        self.network = Dinov2Model.from_pretrained(folder, use_safetensors=True).eval()
        self.network.to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def features(self, x: Tensor) -> np.ndarray:
        """float64 (B, F) of images (B, 3, H, W) in [-1, 1]."""
        return self.network(self.prepared(x)).last_hidden_state[:, 0].double().cpu().numpy()


class AestheticHead(nn.Module):
    """LAION's aesthetic predictor: linear layers 768-1024-128-64-16-1 on a normalised CLIP ViT-L/14 embedding.

    There is no nonlinearity between them (dropout in training only). `path` is a safetensors file of the published
    ``sac+logos+ava1-l14-linearMSE`` weights, under their own names (``layers.0.weight``, ..).
    """

    def __init__(self, width: int = 768):
        super().__init__()
        sizes = [width, 1024, 128, 64, 16, 1]
        # The published numbering counts the dropouts between: layers 0, 2, 4, 6, 7.
        self.layers = nn.ModuleDict({str(k): nn.Linear(*s) for k, s in zip((0, 2, 4, 6, 7), zip(sizes, sizes[1:]))})

    @classmethod
    def load(cls, path: Path, width: int = 768) -> AestheticHead:
        """Raises :class:`InputError` for a missing or foreign file."""
        tensors, _ = read_tensors(path)
        head = cls(width)
        try:
            head.load_state_dict(tensors)
        except RuntimeError as error:
            raise InputError(f"{path} is no aesthetic predictor ({' '.join(str(error).split())[:120]}).") from None
        return head.eval().requires_grad_(False)

    def forward(self, embedding: Tensor) -> Tensor:
        """Score (B,) of normalised embeddings (B, width)."""
        for layer in self.layers.values():
            embedding = layer(embedding)
        return embedding[:, 0]


class ClipScores(TransformerImages):
    """Cosine of a CLIP model's image and caption embeddings, and what the aesthetic head makes of the former.

    `folder` holds a ``transformers`` CLIPModel with its tokenizer (the paper's is ViT-L/14).
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", head: AestheticHead | None = None):
        from transformers import CLIPModel, CLIPTokenizer

        self.network = CLIPModel.from_pretrained(folder, use_safetensors=True).eval()
        self.network.to(device)  # type: ignore[arg-type]
        self.tokenizer, self.head = CLIPTokenizer.from_pretrained(folder), head and head.to(device)
        super().__init__(self.network.config.vision_config.image_size, CLIP_NORM, device)

    def _text(self, captions: list[str]) -> Tensor:
        longest = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        hidden = self.network.text_model(**tokens.to(self.device)).pooler_output
        return nn.functional.normalize(self.network.text_projection(hidden), dim=-1)

    def _image(self, x: Tensor) -> Tensor:
        hidden = self.network.vision_model(self.prepared(x)).pooler_output
        return nn.functional.normalize(self.network.visual_projection(hidden), dim=-1)

    @torch.no_grad()
    def scores(self, x: Tensor, captions: list[str]) -> dict[str, np.ndarray]:
        """``clip_score`` and, with a head, ``aesthetic``: float64 (B,) of images (B, 3, H, W) in [-1, 1]."""
        image = self._image(x)
        out = {"clip_score": (image * self._text(captions)).sum(-1)}
        if self.head:
            out["aesthetic"] = self.head(image)
        return {name: v.double().cpu().numpy() for name, v in out.items()}


@dataclass
class Encoders:
    """What images are compared by.

    Attributes
    ----------
    features : by metric (``fd_teacher``, ``fid_teacher``, ``fd_dino``) what gives its features. clip : or None.
    missing : by metric, one sentence that says why it is not measured.
    """

    features: dict[str, Any]
    clip: ClipScores | None
    missing: dict[str, str]


def find_encoders(about: dict, device: torch.device) -> Encoders:
    """The encoders that are on this machine, and for the others where they were looked for.

    `about` is notebook 1's record: where to look, and whether the hub may be asked.
    """
    from dcm.sdxl_study import _readable, locate

    missing: dict[str, str] = {}
    extractors: dict[str, object] = {"fd_teacher": EfficientNetFeatures(device)}

    def attempt(metrics: tuple[str, ...], make: Callable):
        try:
            return make()
        except InputError as why:
            missing.update(dict.fromkeys(metrics, str(why)))

    def local(name: str, kind):
        folder = locate(about[name], name, about["download"])
        with _readable(folder):
            return kind(folder)

    if about["inception"] == "off":
        missing["fid_teacher"] = f"inception is off; it needs {INCEPTION_FILE} and inception = 'local', or 'download'."
    else:
        extractors["fid_teacher"] = attempt(
            ("fid_teacher",), lambda: InceptionFeatures(device, download=about["inception"] == "download")
        )
    extractors["fd_dino"] = attempt(("fd_dino",), lambda: local("dino", lambda f: DinoFeatures(f, device)))
    clip = attempt(("clip_score", "aesthetic"), lambda: local("clip", lambda f: ClipScores(f, device)))
    if clip:
        width = clip.network.config.projection_dim
        head = attempt(("aesthetic",), lambda: AestheticHead.load(project_path(about["aesthetic"]), width))
        clip.head = head and head.to(device)
    return Encoders({name: e for name, e in extractors.items() if e}, clip, missing)


class SDXLQuality:
    """Quality metrics of latents, on their decoded images.

    Parameters
    ----------
    pictures : latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1]. captions : of condition 0, 1, ..
    find : gives the :class:`Encoders`, when they are first needed: training does not need them.

    Frechet distances are to the teacher's samples from the same noise, solver, N and w, as in the paper; ``sharpness``
    as in :mod:`dcm.image_quality`.
    """

    workers = 1  # sets of samples worth measuring side by side

    def __init__(self, pictures, captions: list[str], find: Callable[[], Encoders]):
        check_scipy()
        self.pictures, self.captions, self._find = pictures, captions, find
        self.metrics = {
            "fid_teacher": Metric("FID to teacher (Inception, mode clean)", ratio=True),
            "fd_dino": Metric("FD-DINOv2 to teacher", ratio=True),
            "clip_score": Metric("CLIP score (cosine)", lower_is_better=False),
            "aesthetic": Metric("LAION aesthetic score", lower_is_better=False),
            "fd_teacher": Metric("Frechet distance to teacher (EfficientNet-Lite0 features)", ratio=True),
            "sharpness": Metric("high-frequency power [teacher = 1]", judged=False),
        }
        self._kept: dict[str, dict] = {}

    @cached_property
    def encoders(self) -> Encoders:
        """What is on this machine."""
        return self._find()

    @property
    def primary(self) -> str:
        """What the verdict rests on: FID as in the paper, or the features whose weights are always here."""
        return "fid_teacher" if "fid_teacher" in self.encoders.features else "fd_teacher"

    @property
    def beside(self) -> tuple[str, ...]:
        """CLIP score where it is measured, and sharpness."""
        return ("clip_score", "sharpness") if self.encoders.clip else ("sharpness",)

    @property
    def note(self) -> str:
        """One line on what is measured and what is not, and why."""
        told = [f"{self.metrics[name].label} is not measured: {why}" for name, why in self.encoders.missing.items()]
        return " ".join(["Quality is measured on decoded images, against the teacher's from the same noise.", *told])

    def _looked_at(self, x: Tensor, condition: Tensor) -> dict[str, np.ndarray]:
        """Features, scores and mean power spectrum of latents `x`; images are decoded a few at a time, once."""
        made: dict[str, list] = {}
        starts = range(0, len(x), DECODED)
        for i in tqdm(starts, desc="decode and encode", unit="batch", disable=len(starts) < 4, leave=False):
            images = self.pictures(x[i : i + DECODED])
            part = {name: e.features(images) for name, e in self.encoders.features.items()}
            if self.encoders.clip:
                asked = [self.captions[c] for c in condition[i : i + DECODED].tolist()]
                part |= self.encoders.clip.scores(images, asked)
            part["power"] = np.repeat(radial_power(images).cpu().numpy()[None], len(images), 0)
            for name, value in part.items():
                made.setdefault(name, []).append(value)
        return {name: np.concatenate(values) for name, values in made.items()}

    def measure(self, x: Tensor, condition: Tensor, teacher_x: Tensor) -> dict[str, float]:
        """All metrics of latents `x` (B, C, h, w) of prompts `condition` (B,), against `teacher_x`; NaN: not measured."""
        if not x.isfinite().all():
            return dict.fromkeys(self.metrics, NAN)
        key = hashlib.sha256(teacher_x.float().cpu().contiguous().numpy()).hexdigest()
        if key not in self._kept:
            self._kept[key] = self._looked_at(teacher_x, condition)
        teacher = self._kept[key]
        own = teacher if x is teacher_x else self._looked_at(x, condition)
        out = dict.fromkeys(self.metrics, NAN)
        out |= {name: frechet(own[name], teacher[name]) for name in self.encoders.features}
        out |= {name: float(own[name].mean()) for name in ("clip_score", "aesthetic") if name in own}
        top = own["power"].shape[1] // 2
        out["sharpness"] = float((own["power"].mean(0)[top:] / teacher["power"].mean(0)[top:]).mean())
        return out
