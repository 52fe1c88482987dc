"""Figures that show samples and trajectories: points for 2-D studies, grids for images."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dcm.figures.style import CLASS_COLOURS, COLOURS


def density(ax, teacher, condition: int | None = None, extent: float = 2.4) -> None:
    """Draw a mixture's density as grey shades, of one class or of all; above 2-D leave the plane of the first two empty."""
    if teacher.shape != (2,):
        ax.set(xlabel="first coordinate", ylabel="second coordinate")
        return
    u = torch.linspace(-extent, extent, 220)
    x = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1).reshape(-1, 2)
    c = torch.full((len(x),), teacher.num_classes if condition is None else condition)
    p = teacher.log_density(x, c).exp().reshape(len(u), len(u))
    ax.imshow(p**0.5, origin="lower", extent=[-extent, extent] * 2, cmap="Greys", alpha=0.65, aspect="equal")
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
    ax.grid(False)


def image(x: Tensor) -> np.ndarray:
    """An image (C, H, W) in [-1, 1] as an array that matplotlib shows."""
    return ((x.clamp(-1, 1) + 1) / 2).movedim(0, -1).squeeze(-1).cpu().numpy()


def image_rows(rows: dict[str, Tensor], columns: int, size: float = 0.62) -> Figure:
    """Images in labelled rows; column i of every row is one and the same noise.

    `rows` maps a label to images (B, C, H, W), of which the first `columns` are shown.
    """
    columns = min(columns, *(len(x) for x in rows.values()))
    figure, axes = plt.subplots(len(rows), columns, figsize=(size * columns + 1.2, size * len(rows)), squeeze=False)
    for line, (label, x) in zip(axes, rows.items()):
        for ax, one in zip(line, x):
            ax.imshow(image(one), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    return figure


def samples(study, rows: dict[str, Tensor], condition: Tensor) -> Figure:
    """fig2: samples of teacher and students from the same noise.

    `rows` maps a label to samples (B, *shape); `condition` (B,) colours 2-D points by class.
    """
    if study.is_image:
        return image_rows({label: study.pictures(x[:16]) for label, x in rows.items()}, 16)
    count = len(rows)
    across = (count + 1) // 2 if count > 4 else count
    figure, axes = plt.subplots(
        -(-count // across), across, figsize=(2.5 * across, 2.65 * -(-count // across)), squeeze=False
    )
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (label, x) in zip(axes.flat, rows.items()):
        ax.set_axis_on()
        density(ax, study.teacher)
        for c in range(study.teacher.num_classes):
            part = x[condition[: len(x)] == c][:300].cpu()
            ax.scatter(part[:, 0], part[:, 1], s=3, color=CLASS_COLOURS[c % len(CLASS_COLOURS)], alpha=0.7, lw=0)
        ax.set_title(label, fontsize=9)
    return figure


def objectives(study, paths: Tensor, start: int, targets: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """fig1: what each objective regresses on, drawn on real teacher trajectories.

    Parameters
    ----------
    paths : (n + 1, B, *shape), the teacher's trajectories from x_{t_n} (row 0) to data (last row). start : n.
    targets : method -> (point from which the target is made (B, *shape), target (B, *shape)).
    """
    if study.is_image:
        rows = {"$x_{t_n}$ (noisy start)": paths[0]}
        for method, (_, target) in targets.items():
            rows[f"target of {method}"] = target
        rows["teacher's solution"] = paths[-1]
        return image_rows({label: study.pictures(x[:12]) for label, x in rows.items()}, 12)
    figure, axes = plt.subplots(1, len(targets), figsize=(4.2 * len(targets), 4.3), squeeze=False)
    for ax, (method, (origin, target)) in zip(axes[0], targets.items()):
        density(ax, study.teacher, extent=2.9)
        p, o, y = (v.cpu().numpy() for v in (paths, origin, target))
        ax.plot(p[..., 0], p[..., 1], "-", color=COLOURS["teacher"], lw=1, alpha=0.55)
        ax.plot(p[0, :, 0], p[0, :, 1], "o", color="black", ms=5, label="$x_{t_n}$, where the student is called")
        ax.plot(
            p[-1, :, 0], p[-1, :, 1], "D", mfc="none", color=COLOURS["teacher"], ms=7, label="teacher's ODE solution"
        )
        for a, b in zip(o, y):
            ax.annotate("", b, a, arrowprops=dict(arrowstyle="->", color=COLOURS[method], lw=1.2, ls="--", alpha=0.8))
        ax.plot(o[:, 0], o[:, 1], ".", color=COLOURS[method], ms=6, label=r"$\hat{x}$, where the teacher's steps end")
        ax.plot(y[:, 0], y[:, 1], "*", color=COLOURS[method], ms=12, label="target of the regression")
        ax.set_title(method)
        ax.legend(fontsize=7, loc="upper left", framealpha=0.8, frameon=True)
    return figure
