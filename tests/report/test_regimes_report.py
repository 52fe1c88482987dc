"""What notebook 7 says, and what it keeps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from analysis_rows import rows_of, run_of

from dcm.analysis import runs
from dcm.figures import samples as sample_figures
from dcm.figures import style
from dcm.metrics.metric import Metric
from dcm.report import provenance, regime_sentences
from dcm.report.page import Page
from dcm.report.regimes import Regimes
from dcm.support.files import write_tensors


def test_a_further_encoder_is_asked():
    """By pixels both distances say that the Direct CM is worse in one regime, and in the other one of them does."""
    rows = rows_of(("main", 80, 1), ("heun", 80, 1)).rename(
        columns={"swd_teacher": "fd_teacher", "swd_data": "fd_real"}
    )
    direct = rows.method == "Direct CM"
    wobble, data = np.exp(0.01 * (-1.0) ** rows.seed), np.where(direct & (rows.group == "heun"), 0.5, 1 + direct)
    rows = rows.assign(fd_pixels=(1 + 2.0 * direct) * wobble**direct, fd_pixels_real=data * wobble**direct)
    metrics = {k: Metric(k, ratio=True) for k in ("fd_teacher", "fd_real", "fd_pixels", "fd_pixels_real")}
    run = run_of(rows, heun=dict(solver="heun"))
    run = replace(run, facts=runs.Facts("digits", (1, 8, 8), None, "fd_teacher", metrics))
    claims = run.claims()
    _, _, line, together = regime_sentences.where_c2_holds(Regimes([run], run.rows, claims))
    assert line.startswith(
        "**digits, by a further encoder** (fd_pixels). C2 by the distance to the teacher's samples: "
    )
    assert (
        "samples: 2 supported, 0 contradicted, 0 inconclusive; by the distance to data: 1 supported, 1 contra" in line
    )
    assert "Regimes that support C1, and C2 by both distances: one, main. Strongest" in line
    assert "Strongest for C2: " in line and "ratio 3 [2.95, 3.06], 4 seeds (supported)" in line
    assert together.startswith("**digits, over all encoders** ") and together.endswith(": 2 unanimous (supported).")


def test_samples_are_kept_to_be_shown_again(tmp_path):
    """In a results folder as in a run's: the teacher's first, CM beside Direct CM, and the figure knows its file."""
    x = torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)
    names = ["CM, 1 step", "CM, 2 steps", "Direct CM, 1 step", "Direct CM, 2 steps", "teacher"]
    kept = {name: x + i for i, name in enumerate(names)}
    write_tensors(tmp_path / "samples_shown.safetensors", kept | {"condition": torch.arange(20)})
    shown = runs._shown(tmp_path / "samples_shown.safetensors")
    assert list(shown) == ["teacher", "CM, 1 step", "Direct CM, 1 step", "CM, 2 steps", "Direct CM, 2 steps"]
    assert all(torch.equal(v, kept[k][:16]) for k, v in shown.items())
    run = replace(run_of(rows_of(("main", 80, 1))), shown=shown)
    page = Page(tmp_path, "regimes", {"6": {"commit": "c", "parameters": {}}})
    style.use_style()
    write_tensors(kept_in := tmp_path / runs.samples_file("one"), run.shown)
    page.figure(sample_figures.image_rows(run.shown, runs.SHOWN), "samples_one", "80 updates", kept_in)
    again = runs._shown(tmp_path / runs.samples_file("one"))
    assert list(again) == list(shown) and all(torch.equal(again[k], v) for k, v in shown.items())
    assert page.sections[0][1] == "80 updates" and runs._shown(tmp_path / "none") == {}
    record = provenance.read(tmp_path / "samples_one.png")
    assert [Path(f["file"]).name for f in record["drawn_from"]] == ["samples_one.safetensors"]
