"""Figures that show samples and trajectories: points for 2-D studies, grids for images."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dcm.figures.style import CLASS_COLOURS, COLOURS, GREY, WIDTH, key, panels


def density(ax, teacher, extent: float = 2.4) -> None:
    """Draw a mixture's density as grey shades; above 2-D leave the plane of the first two empty."""
    if teacher.shape != (2,):
        ax.set(xlabel="first coordinate", ylabel="second coordinate")
        return
    u = torch.linspace(-extent, extent, 220)
    x = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1).reshape(-1, 2)
    c = torch.full((len(x),), teacher.num_classes)
    p = teacher.log_density(x, c).exp().reshape(len(u), len(u))
    ax.imshow(p**0.5, origin="lower", extent=[-extent, extent] * 2, cmap="Greys", alpha=0.65, aspect="equal")
    ax.set(xlim=(-extent, extent), ylim=(-extent, extent), xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)


def image_rows(rows: dict[str, Tensor], columns: int) -> Figure:
    """Images in labelled rows; column i of every row is one and the same noise.

    `rows` maps a label to images (B, C, H, W), in [-1, 1], of which the first `columns` are shown, twelve at most.
    """
    columns = min(columns, 12, *(len(x) for x in rows.values()))
    size = (WIDTH - 0.2 - 0.075 * max(map(len, rows))) / columns  # beside the longest label
    figure, axes = plt.subplots(len(rows), columns, figsize=(WIDTH, size * len(rows)), squeeze=False)
    for line, (label, x) in zip(axes, rows.items()):
        for ax, one in zip(line, x):
            picture = ((one.clamp(-1, 1) + 1) / 2).movedim(0, -1).squeeze(-1).cpu().numpy()
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
        line[0].text(-0.1, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    return figure


def samples(study, rows: dict[str, Tensor], condition: Tensor) -> Figure:
    """fig2: samples of teacher and students from the same noise, the teacher's first and the others in threes beside it.

    `rows` maps a label to samples (B, *shape); `condition` (B,) colours 2-D points by class.
    """
    if study.is_image:
        return image_rows({label: study.pictures(x[:12]) for label, x in rows.items()}, 12)
    down = max(1, -(-(len(rows) - 1) // 3))
    figure, axes = plt.subplots(down, 4, figsize=(WIDTH, 2 * down), squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, (label, x) in zip([axes[0, 0], *axes[:, 1:].flat], rows.items()):
        ax.set_axis_on()
        density(ax, study.teacher)
        for c in range(study.teacher.num_classes):
            part = x[condition[: len(x)] == c][:300].cpu()
            ax.scatter(part[:, 0], part[:, 1], s=3, color=CLASS_COLOURS[c % len(CLASS_COLOURS)], alpha=0.7, lw=0)
        ax.set_title(label, fontsize=9)
    return figure


def objectives(study, paths: Tensor, start: int, targets: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """fig1: what each objective regresses on, drawn on real teacher trajectories from x_{t_n}, n = `start`.

    `paths` (n + 1, B, *shape) end at data; `targets` has by method the point from which the target is made and the target,
    each (B, *shape).
    """
    if study.is_image:
        regressed = {f"target of {method}": target for method, (_, target) in targets.items()}
        rows = {"$x_{t_n}$ (noisy start)": paths[0]} | regressed | {"teacher's solution": paths[-1]}
        return image_rows({label: study.pictures(x[:12]) for label, x in rows.items()}, 12)
    figure, axes = panels(len(targets), 3.5)
    seen = torch.cat([v[..., :2].reshape(-1, 2) for v in (paths, *(y for pair in targets.values() for y in pair))]).cpu()
    extent = 1.1 * float(seen.abs().max())
    low, high = (seen.amin(0) - extent / 5).tolist(), (seen.amax(0) + extent / 5).tolist()
    for ax, (method, (origin, target)) in zip(axes, targets.items()):
        density(ax, study.teacher, extent=extent)
        p, o, y = (v[..., :2].cpu().numpy() for v in (paths, origin, target))  # above 2-D the plane of the first two
        colour, grey = COLOURS.get(method, "#009E73"), COLOURS["teacher"]  # green: a horizon between the two
        ax.plot(p[..., 0], p[..., 1], "-", color=grey, lw=1, alpha=0.55)
        ax.plot(*p[0].T, "o", color="black", ms=5, label="$x_{t_n}$, where the student is called")
        ax.plot(*p[-1].T, "D", mfc="none", color=grey, ms=7, label="teacher's ODE solution")
        for a, b in zip(o, y):
            ax.annotate("", b, a, arrowprops=dict(arrowstyle="->", color=colour, lw=1.2, ls="--", alpha=0.8))
        ends, goal = r"$\hat{x}$, where the teacher's steps end", "target of the regression"
        for marks, look, size, text in ((o, ".", 6, ends), (y, "*", 12, goal)):
            ax.plot(*marks.T, look, color=colour, ms=size)
            ax.plot([], [], look, color=GREY, ms=size, label=text)  # of either colour
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        ax.set_title(method, color=colour)
    return key(figure, ncols=2)
