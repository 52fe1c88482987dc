"""Training an image encoder without labels, as a generator: two random views of an image must know each other.

    L = 2 - cos(q_1, k_2) - cos(q_2, k_1)

with q a predictor's answer to a projection of the trained network's features, and k the same projection by a network
whose weights are a moving average (Grill et al. 2020, "BYOL", eq. 2); or, with ``contrast``, the mean of
CE(q_1 k_2^T / tau, own image) and CE(q_2 k_1^T / tau, own image) (Chen, Xie & He 2021, "MoCo v3"). The averaged network
is the one to keep.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcm.metrics.features import SelfSupervised
from dcm.support.errors import TrainingError
from dcm.support.seeds import generator

# From RGB to luma and two colour differences, in which a change of hue is a rotation.
YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrix and its inverse; kept, since a copy to a GPU would wait for it."""
    matrix = torch.tensor(YIQ)
    return matrix.to(device), torch.linalg.inv(matrix).to(device)


@dataclass(frozen=True)
class Views:
    """How a view is drawn of an image; every image of a batch has draws of its own."""

    area: float = 0.08  # smallest share of the image that a crop shows
    flip: bool = True  # mirror half of them
    rotation: float = 0.0  # largest angle, in degrees
    jitter: float = 0.8  # share with changed colours
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # of brightness, contrast, saturation, hue
    grey: float = 0.2  # share without colours

    def draw(self, x: Tensor, size: int, g: torch.Generator) -> Tensor:
        """Views (B, C, size, size) of images (B, C, H, W) in [0, 1]; the generator `g` lies on their device."""
        return self._recoloured(self._cropped(x, size, g), g).clamp(0, 1)

    def _cropped(self, x: Tensor, size: int, g: torch.Generator) -> Tensor:
        """A random part of random aspect, mirrored and turned; bilinear."""
        u = torch.rand(7, len(x), generator=g, device=x.device)
        area, aspect = self.area + (1 - self.area) * u[0], ((2 * u[1] - 1) * math.log(4 / 3)).exp()
        width, height = ((area * v).sqrt().clamp(max=1) for v in (aspect, 1 / aspect))
        left, top = (2 * u[2] - 1) * (1 - width), (2 * u[3] - 1) * (1 - height)
        side = torch.where(u[4] < 0.5, -1.0, 1.0) if self.flip else 1.0
        angle = (2 * u[5] - 1) * math.radians(self.rotation)
        cos, sin = angle.cos(), angle.sin()
        rows = [
            torch.stack([width * side * cos, -height * sin, left], 1),
            torch.stack([width * side * sin, height * cos, top], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [len(x), x.shape[1], size, size], align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)

    def _recoloured(self, x: Tensor, g: torch.Generator) -> Tensor:
        """Brightness, contrast, then saturation and hue as one matrix, all for a share of the views; some without colour."""
        u = torch.rand(6, len(x), 1, 1, 1, generator=g, device=x.device)
        on = (u[4] < self.jitter).float()
        bright, contrast, saturation, hue = (on * (2 * v - 1) * s for v, s in zip(u[:4], self.strength))
        x = x * (1 + bright)
        if x.shape[1] == 1:
            return torch.lerp(x.mean((1, 2, 3), keepdim=True), x, 1 + contrast)
        yiq, rgb = _yiq(x.device)
        mean = (x * yiq[0].reshape(3, 1, 1)).sum(1, keepdim=True).mean((2, 3), keepdim=True)
        x = torch.lerp(mean, x, 1 + contrast)
        colour = (1 + saturation) * (u[5] >= self.grey)
        cos, sin = ((f(2 * math.pi * hue) * colour).flatten() for f in (torch.cos, torch.sin))
        zero = torch.zeros_like(cos)
        turn = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], 1).reshape(-1, 3, 3)
        return torch.einsum("bij,bjhw->bihw", rgb @ turn @ yiq, x)


@dataclass(frozen=True)
class Recipe:
    """How an encoder is trained."""

    widths: tuple[int, ...] = (64, 128, 256, 384)  # channels of the ResNet's stages
    views: Views = Views()
    batch: int = 512  # images an update, two views of each
    lr: float = 0.4  # SGD's, at its peak; a cosine to zero follows
    warmup: int = 500  # updates of linear warm-up
    weight_decay: float = 5e-4
    momentum: float = 0.99  # of the averaged network, at first; it rises to 1
    temperature: float = 0.2
    head: int = 2048  # hidden width of projection and prediction
    projection: int = 256
    contrast: bool = False  # whether q must also be far from other images' k, or only near its own
    seed: int = 0


def mlp(*widths: int, affine: bool = True) -> nn.Sequential:
    """Linear layers with batch norm after each, and ReLU between; `affine` is the last norm's."""
    layers: list[nn.Module] = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2], nn.BatchNorm1d(widths[-1], affine=affine))


class Contrast(nn.Module):
    """The trained network with its two heads, and the averaged one."""

    def __init__(self, recipe: Recipe, channels: int):
        super().__init__()
        self.recipe = recipe
        encoder = SelfSupervised(channels, recipe.widths)
        project = mlp(encoder.hidden, recipe.head, recipe.projection, affine=False)
        self.online = nn.Sequential(encoder.network, project)
        self.averaged = copy.deepcopy(self.online).requires_grad_(False)
        self.predict = mlp(recipe.projection, recipe.head, recipe.projection)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions q and averaged projections k, (2 B, projection) each, of views (2 B, C, H, W) in [-1, 1]."""
        with torch.no_grad():
            k = self.averaged(views)
        return self.predict(self.online(views)), k

    def loss(self, q: Tensor, k: Tensor) -> Tensor:
        """The loss above, of what :meth:`forward` gave for the first views of B images and then their second ones."""
        (q_1, q_2), (k_1, k_2) = (F.normalize(v.float(), dim=1).chunk(2) for v in (q, k))
        if not self.recipe.contrast:
            return 2 - ((q_1 * k_2).sum(1) + (q_2 * k_1).sum(1)).mean()
        own = torch.arange(len(q_1), device=q.device)
        parts = [F.cross_entropy(a @ b.T / self.recipe.temperature, own) for a, b in ((q_1, k_2), (q_2, k_1))]
        return torch.stack(parts).mean()

    @torch.no_grad()
    def average(self, keep: float) -> None:
        """Move the averaged weights towards the trained ones: `keep` of them stays."""
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.online.parameters()), 1 - keep)

    def encoder(self) -> SelfSupervised:
        """A copy of the averaged network, frozen and ready."""
        out = SelfSupervised(self.online[0][0].in_channels, self.recipe.widths)
        out.network.load_state_dict(self.averaged[0].state_dict())
        return out.to(self.online[0][0].weight.device).eval().requires_grad_(False)


@dataclass
class State:
    """What :func:`train_encoder` yields after each update: one object, updated in place."""

    model: Contrast
    updates: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    progress: float = 0.0  # 0 to 1
    loss: Tensor | None = None  # (), of the last update


def _optimizer(model: Contrast, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD whose weight decay leaves norms and biases alone."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=0.0, momentum=0.9, foreach=True)


def train_encoder(
    images: Tensor, recipe: Recipe, epochs: float | None = None, seconds: float | None = None, compiled: bool = False,
    peak: int = 255,
) -> Iterator[State]:  # fmt: skip
    """Train on `images` (n, C, H, W) uint8, 0 .. `peak`, on their device: for `epochs`, or for `seconds` of the clock.

    Rates and the averaging follow the share that is done, of either. On a GPU in bfloat16, and with `compiled` through
    torch.compile, whose time counts too. Raises :class:`TrainingError` when the loss is not finite.
    """
    began, device, n = time.monotonic(), images.device, len(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = Contrast(recipe, images.shape[1]).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    forward = torch.compile(model, dynamic=False) if compiled else model
    optimizer, state, g = _optimizer(model, recipe), State(model), generator(device, recipe.seed, "features")
    batch, size = min(recipe.batch, n), images.shape[-1]

    def loss_of(index: Tensor) -> Tensor:
        x = images[index].float() / peak
        views = torch.cat([recipe.views.draw(x, size, g), recipe.views.draw(x, size, g)]) * 2 - 1
        if device.type == "cuda":
            views = views.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            q, k = forward(views)
        return model.loss(q, k)

    if compiled:  # now, before the rates follow the clock
        loss_of(torch.arange(batch, device=device)).backward()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize() if device.type == "cuda" else None
    spent, order = time.monotonic() - began, []
    while True:
        state.seconds = time.monotonic() - began
        state.progress = (state.seconds - spent) / (seconds - spent) if seconds else state.epochs / epochs
        if state.progress >= 1:
            return
        if not order:
            order = list(torch.randperm(n, generator=g, device=device).split(batch)[: n // batch])
        wave = (1 + math.cos(math.pi * state.progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * wave * min(1.0, (state.updates + 1) / (recipe.warmup + 1))
        state.loss = loss_of(order.pop())
        optimizer.zero_grad(set_to_none=True)
        state.loss.backward()
        optimizer.step()
        model.average(1 - (1 - recipe.momentum) * wave)
        state.updates, state.epochs, state.loss = state.updates + 1, state.epochs + batch / n, state.loss.detach()
        if state.updates % 200 == 0 and not state.loss.isfinite():
            raise TrainingError(
                f"the encoder's loss is not finite at update {state.updates}; lower its lr (now {recipe.lr})."
            )
        yield state


def knn_accuracy(
    train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, k: int = 200, temperature: float = 0.1
) -> float:
    """Share of `test` features (m, F) whose class the `k` nearest of `train` (n, F) by cosine tell.

    Each neighbour votes with weight exp(cosine / temperature) (Wu et al. 2018, section 3.4, their k and temperature).
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    right = []
    for x, y in zip(test.split(1000), truth.split(1000)):
        near, index = (x @ train.T).topk(min(k, len(train)))
        votes = x.new_zeros(len(x), int(labels.max()) + 1).scatter_add_(1, labels[index], (near / temperature).exp())
        right.append(votes.argmax(1) == y)
    return float(torch.cat(right).double().mean())


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, decay: float = 1e-4) -> float:
    """Share of `test` features (m, F) whose class a logistic regression on `train` (n, F), standardised, tells.

    Fitted by L-BFGS, with a penalty of `decay` / 2 times the squared weights.
    """
    mean, deviation = train.float().mean(0), train.float().std(0) + 1e-6
    train, test = ((v.float() - mean) / deviation for v in (train, test))
    head = nn.Linear(train.shape[1], int(labels.max()) + 1).to(train.device)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(train), labels) + decay / 2 * head.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return float((head(test).argmax(1) == truth).double().mean())
