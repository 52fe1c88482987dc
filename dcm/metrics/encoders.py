"""Encoders of transformers: DINOv2, CLIP, and the aesthetic head; which of them are on this machine."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.metrics.features import INCEPTION_FILE, EfficientNetFeatures, Encoder, InceptionFeatures
from dcm.support.errors import InputError
from dcm.support.files import project_path, read_tensors
from dcm.support.pretrained import locate, readable_model

# Mean and standard deviation of the colours.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP_NORM = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


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


class Encoders:
    """The encoders that are on this machine, and for the others where they were looked for.

    `about` is notebook 1's record: where to look, and whether the hub may be asked. ``features``: by metric (fd_teacher,
    fid_teacher, fd_dino), what gives its features. ``clip``: where it is, CLIP with the aesthetic head. ``missing``: by
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
        self.features: dict[str, Encoder] = {name: encoder for name, encoder in found.items() if encoder}
        self.clip: ClipScores | None = attempt(lambda: local("clip", ClipScores), "clip_score", "aesthetic")
        if self.clip:
            width = self.clip.network.config.projection_dim
            head = attempt(lambda: aesthetic_head(project_path(about["aesthetic"]), width), "aesthetic")
            self.clip.head = head and head.to(device)
