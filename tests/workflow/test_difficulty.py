"""The sweep over mixtures and widths, at a size that says nothing."""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2] / "workflow"))
import difficulty


def test_a_cell_is_measured_once(tmp_path, monkeypatch, capsys):
    for name, value in dict(updates=8, pretrain=2, samples=32).items():
        monkeypatch.setitem(difficulty.TRAINING, name, value)
    monkeypatch.setattr(difficulty, "RATES", (0.001, 0.003))
    monkeypatch.setattr(difficulty, "CELLS", [difficulty.Cell(3, 4, 16)])
    monkeypatch.setattr(difficulty.Cell, "run_dir", str(tmp_path / "run"))
    difficulty.main([str(tmp_path / "metrics.csv")])
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert set(rows.method) == {"CM", "Direct CM", "direct>cm", "cm>direct"} and sorted(rows["update"].unique()) == [4, 6, 8]
    assert (rows[["dimension", "modes_per_class", "width"]] == [3, 4, 16]).all(axis=None)
    assert len(rows) == 3 * 4 * 8 and set(rows.lr) <= {0.001, 0.003}
    assert rows.swd_teacher.notna().equals(rows["update"] == 8) and rows.ode_error.notna().all()
    said = capsys.readouterr().out.splitlines()[-1]
    difficulty.main([str(tmp_path / "metrics.csv")])
    assert said.startswith("3 4 16") and capsys.readouterr().out == ""
