"""An image encoder that was trained without labels, as Stein et al. 2023 recommend; ``weights/`` has its training."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcm.support.errors import InputError
from dcm.support.files import read_weights, write_weights


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
    """A :func:`resnet`'s pooled features, of images (B, C, H, W) in [-1, 1].

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
