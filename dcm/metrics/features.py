"""What images are compared by: features of our own networks, and pixels. Networks of others: :mod:`dcm.metrics.encoders`.

A feature extractor has ``name`` and ``features(x (B, C, H, W) in [-1, 1]) -> float64 (B, F)``, on its own device.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.data.images import ImageSet
from dcm.support.errors import InputError, TrainingError
from dcm.support.files import read_tensors, read_weights, write_tensors, write_weights
from dcm.support.progress import tqdm
from dcm.support.seeds import generator


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
    def shipped(cls, folder: Path) -> "Classifier":
        """:meth:`load` of ``weights.safetensors``, checked against ``config.json`` beside it; raises :class:`InputError`."""
        read_weights(folder)  # which checks them
        return cls.load(folder / "weights.safetensors")

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
    """Images as they are: no network, so nothing that one was trained to overlook. Above 16 pixels a side means of blocks."""

    name = "pixel"

    def features(self, x: Tensor) -> Tensor:
        """The pixels, float64 (B, C H W), with H and W at most 16: distances take a root of their covariance."""
        return nn.functional.adaptive_avg_pool2d(x, [min(n, 16) for n in x.shape[2:]]).flatten(1).double()


def resnet(channels: int, widths: Sequence[int], blocks: int = 2) -> nn.Sequential:
    """A ResNet of torchvision's basic blocks for small images: a 3 x 3 stem, no max-pool; pooled features at its end.

    With widths 64, 128, 256, 512 it is the ResNet-18 that the literature uses on CIFAR-10.
    """
    from torchvision.models.resnet import BasicBlock

    width = widths[0]
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
    for stage, wanted in enumerate(widths):
        for block in range(blocks):
            stride, shorten = (2 if stage and not block else 1), None
            if stride > 1 or width != wanted:
                shorten = nn.Sequential(nn.Conv2d(width, wanted, 1, stride, bias=False), nn.BatchNorm2d(wanted))
            layers.append(BasicBlock(width, wanted, stride, shorten))
            width = wanted
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SelfSupervised(nn.Module):
    """An encoder that had no labels, as Stein et al. 2023 recommend: pooled features of a :func:`resnet`; see ``weights/``.

    ``accuracy``: of labels told from the features on held-out images, by name, once known.
    """

    name = "self-supervised"

    def __init__(self, channels: int = 3, widths: Sequence[int] = (64, 128, 256, 384)):
        super().__init__()
        self.channels, self.widths, self.hidden = channels, tuple(widths), widths[-1]
        self.accuracy: dict[str, float] = {}
        self.network = resnet(channels, widths)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """float64 (B, F)."""
        return torch.cat([self.network(part) for part in x.to(next(self.parameters()).device).split(1000)]).double()

    def save(self, folder: Path, about: dict) -> None:
        """Write float16 weights and ``config.json``: architecture, accuracies, SHA-256, and `about`."""
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in self.network.state_dict().items()}
        network = {"channels": self.channels, "widths": list(self.widths)}
        write_weights(folder, tensors, {"network": network, "accuracy": self.accuracy, **about})

    @classmethod
    def load(cls, folder: Path) -> "SelfSupervised":
        """Read what :meth:`save` wrote, frozen. Raises :class:`InputError` for missing, altered or foreign files."""
        tensors, about = read_weights(folder)
        try:
            encoder = cls(**about["network"])
            encoder.network.load_state_dict(tensors)
            encoder.accuracy = about["accuracy"]
        except (KeyError, TypeError, RuntimeError):
            what = "no self-supervised encoder of this version; restore it from the repository"
            raise InputError(f"{folder} holds {what}.") from None
        return encoder.eval().requires_grad_(False)
