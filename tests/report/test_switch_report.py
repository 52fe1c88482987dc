"""What notebook 6 says and draws, and what the README takes from it."""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from switch_rows import MEASURED, filtered, folder, of_images, stable

from dcm.analysis import switch as analysis
from dcm.analysis.predictions import PREDICTIONS
from dcm.figures import style
from dcm.figures import switch as figures
from dcm.report import provenance
from dcm.report.switch import Switch
from dcm.support.errors import InputError

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
import fill  # noqa: E402


@pytest.fixture
def found(tmp_path):
    style.use_style()
    yield Switch.load([folder(tmp_path / "gmm16", stable(MEASURED)), folder(tmp_path / "unstable"), str(tmp_path / "nowhere")])
    plt.close("all")


def test_the_takeaway_is_made_of_the_verdicts(found):
    assert "gmm16** (gmm, 1 setting); **unstable**" in found.what_was_read() and "nowhere." in found.what_was_read()
    said = found.takeaway()
    assert "in 1 of 1 settings with a stable CM (gmm16, N = 10, w = 2). Without a stable CM" in said
    assert "without a verdict: unstable, N = 10, w = 2." in said and f"1 held, 1 failed, {len(PREDICTIONS) - 2} open." in said
    assert "gmm16, N = 10, w = 2, D>D / D>CM: C1 supported, C2 supported" in found.lines()
    assert "unstable, N = 10, w = 2, D>D / D>CM: C1 unstable CM, C2 unstable CM" in found.lines()
    gains = found.gains().set_index(["setting", "measure"])
    assert gains.loc[("gmm16, N = 10, w = 2", "ODE error"), "direct>cm / CM"].endswith("better")


def test_what_filters_change_is_said(found):
    assert not len(found.blur()) and "were filtered" in found.about_blur()
    images = filtered(of_images(ode_error={"Direct CM": -0.2}, fd_teacher={"Direct CM": 0.3}, fd_self={"Direct CM": 0.2}), -0.05, blurred=0.1)
    effects = analysis.effects(images)
    table = Switch([images], effects.assign(name="images", main=True), *[pd.DataFrame()] * 2, [], [])
    [first, second] = table.blur().to_dict("records")
    assert first["measure"] == "distance to teacher, EfficientNet-Lite0" and list(first)[2:4] == list(analysis.SWITCH)
    of = effects[effects.metric == "fd_teacher"].set_index("pair").value
    assert all(first[pair].startswith(f"{of[pair]:.3g} [") and first[pair].endswith("supported") for pair in list(first)[2:] if pair != "CM>D / CM>CM")
    assert list(second)[4:] == ["D>D / D>CM, teacher's spectrum", "D>D / D>CM, CM blurred"], "what was measured"
    spectrum, blurred = (effects[effects.pair.str.endswith(end) & (effects.role == "teacher")].value for end in ("spectrum", "blurred"))
    said = table.about_blur()
    assert f"{spectrum.min():.2f} to {spectrum.max():.2f} with the teacher's power spectrum in both" in said
    assert f"{blurred.min():.2f} to {blurred.max():.2f} with the CM's blurred to the Direct one's." in said


def test_where_nothing_switches_it_is_said(tmp_path):
    with pytest.raises(InputError, match="no group with a pair of the switch; its four students are horizons"):
        Switch.load([folder(tmp_path / "gmm16", MEASURED[~MEASURED.method.str.contains(">")])])
    with pytest.raises(InputError, match="folders of one name"):
        Switch.load([folder(tmp_path / "gmm16"), folder(tmp_path / "b") and folder(tmp_path / "b" / "gmm16")])


def test_a_setting_that_was_not_measured_at_the_switch_has_verdicts_and_no_panel(tmp_path):
    found = Switch.load([folder(tmp_path / "ends", MEASURED[MEASURED.final])])
    assert len(found.main) == 1 and len(found.table()) == 2 and found.courses() == []


def test_arrows_lead_from_the_switch_to_the_ends(found):
    figure = figures.switch(found.courses())
    assert len(figure.axes) == 2
    heads = [tuple(t.xy) for t in figure.axes[0].texts]
    last = MEASURED[MEASURED.final].groupby("method")[["ode_error", "swd_teacher"]].mean()
    for (x, y), method in zip(heads, ("Direct CM", "direct>cm", "cm>direct", "CM")):
        assert (x, y) == pytest.approx(tuple(last.loc[method]))
    starts = {tuple(np.round(t.xyann, 9)) for t in figure.axes[0].texts}
    assert len(starts) == 2, "two pairs of equal weights"


def test_the_stack_ends_where_its_terms_do(found):
    figure = figures.accounting(found.accounting)
    for ax, pair in zip(figure.axes, analysis.SWITCH):
        rows = found.accounting[found.accounting.pair == pair]
        assert ax.lines[-1].get_ydata()[0] == 0 and ax.lines[-1].get_xdata() == pytest.approx(rows.log_c2)
        right = sum(p.get_width() for p in ax.patches if p.get_width() > 0)
        left = sum(p.get_width() for p in ax.patches if p.get_width() < 0)
        assert right + left == pytest.approx(rows.log_c2.sum()) and left < 0 < right


def test_the_paper_stands_in_the_plane(found):
    figure = figures.plane(analysis.plane(found.effects))
    [text] = [t.get_text() for legend in figure.legends for t in legend.get_texts() if "paper" in t.get_text()]
    assert text.endswith("second-hand")
    assert any(tuple(np.ravel(line.get_xydata())) == figures.PAPER for line in figure.axes[0].lines)


def test_the_readme_is_filled_from_the_page(found, tmp_path, monkeypatch):
    own = {"notebook": "6_the_switch", "commit": "c", "parameters": {}}
    page = found.page(str(tmp_path / "results/switch"), own)
    page.table("costs", found.readable_costs(), "costs", found.costs)
    page.table("predictions", found.predictions(), "predictions", found.predictions())
    page.figure(figures.switch(found.courses()), "switch", "caption")
    page.write("switch")
    assert provenance.report(page.folder / "switch.png")[1] == []
    monkeypatch.setattr(fill, "ROOT", tmp_path)
    clear = lambda: (fill.table.cache_clear(), fill.switch_rows.cache_clear())
    clear()
    said, table = fill.findings(), fill.switch_table()
    clear()
    assert "by every measure, on the 16-D mixture: its ODE error is 0.79 to 0.93 times the CM's, its samples' distance" in said
    assert "for want of a stable CM on unstable." in said and "They are not on" not in said and "with 0.56 of the Direct CM's teacher evaluations" in said
    assert "| 16-D mixture, N = 10, w = 2 | **0.927** | " in table
    assert "(unstable CM)" in table and pd.read_csv(page.folder / "verdicts.csv").main.all()


def test_errors_that_rank_the_two_as_their_samples_do_are_counted(monkeypatch):
    logs = {"ode_error": -0.2, "fd_teacher": 0.3, "paired": 0.2, "fd_classifier": -0.3, "paired_classifier": -0.2}
    rows = analysis.effects(of_images(**{column: {"Direct CM": log, "cm>direct": log} for column, log in logs.items()}))
    figure = figures.agreement(analysis.beside_errors(rows[rows.pair.isin(analysis.SWITCH)]))
    assert [ax.get_title().split(":")[1].split("\n")[0] for ax in figure.axes] == [" in 2 of 4", " in 4 of 4"]
    monkeypatch.setattr(fill, "table", lambda *_: rows)
    assert (fill.ranked("c1", "cifar10"), fill.ranked("value_there", "cifar10"), fill.ranked("c1", "digits")) == ("2 of 4", "4 of 4", "0 of 0")
    plt.close("all")
