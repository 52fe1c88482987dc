"""Spearman's rank correlation."""

from __future__ import annotations

import numpy as np
from scipy import stats


def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's rank correlation along `axis`: Pearson's of the ranks. SciPy's own is not vectorised."""
    rx, ry = (stats.rankdata(v, axis=axis) for v in (x, y))
    rx, ry = (r - r.mean(axis=axis, keepdims=True) for r in (rx, ry))
    with np.errstate(invalid="ignore"):
        return (rx * ry).sum(axis) / np.sqrt((rx**2).sum(axis) * (ry**2).sum(axis))
