"""Slopes on cases whose answers are known."""

import numpy as np
import pandas as pd
import pytest

from dcm.analysis.slopes import slopes
from dcm.report.regime_sentences import paradox as said
from dcm.support.errors import InputError


def paradox(within: float, between: float) -> pd.DataFrame:
    """Groups whose means rise with slope `between`, each with slope `within`."""
    rng, parts = np.random.default_rng(0), []
    for g in range(8):
        d = np.linspace(-0.4, 0.4, 5)
        y = between * g + within * d + 0.01 * rng.standard_normal(5)
        parts.append(pd.DataFrame({"setting": g, "x": g + d, "y": y}))
    return pd.concat(parts)


def test_slopes_of_simpsons_paradox():
    found = slopes(paradox(-1, 2), "x", "y", ["setting"])
    assert found.within.value == pytest.approx(-1, abs=0.05) and found.within.high < 0
    assert 1.5 < found.pooled.value < 2 and found.pooled.low > 0
    assert (found.by_group.slope < 0).all() and len(found.by_group) == 8
    assert "Simpson" in said(found)


def test_slopes_without_a_paradox():
    found = slopes(paradox(2, 2), "x", "y", ["setting"])
    assert [found.pooled.value, found.within.value] == pytest.approx([2, 2], abs=0.05)
    assert "same within" in said(found)
    with pytest.raises(InputError, match="no group by setting has three runs"):
        slopes(paradox(1, 1).groupby("setting").head(2), "x", "y", ["setting"])
