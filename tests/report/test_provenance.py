"""A figure's file says where it came from, and whether that still holds."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from dcm.__main__ import main
from dcm.report import page, provenance
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, write_csv, write_json, write_tensors

rng = np.random.default_rng(0)
TABLE = pd.DataFrame(
    [
        dict(group=g, solver="ddim", intervals=10, guidance=w, horizon=h, seed=s, update=u, steps=1, final=u == 40)
        for g in ("main", "other") for w in (1.0, 2.5) for h in (1, 5, 10) for s in (0, 1) for u in (20, 40)
    ]
)  # fmt: skip
TABLE["ode_error"] = rng.random(len(TABLE)) / 7


@pytest.fixture
def drawn(tmp_path):
    """A folder as notebook 5 leaves it, with one figure: (folder, rows behind it)."""
    folder, run = tmp_path / "results", tmp_path / "run"
    write_csv(folder / "metrics.csv", TABLE)
    write_tensors(run / "shown.safetensors", {"x": torch.arange(3.0)}, {"seconds": 1.0})
    parameters = {"5_figures": {"threads": 1}}
    write_json(folder / "provenance.json", {"notebooks": {"5_figures": {"parameters": parameters["5_figures"]}}})
    part = TABLE[TABLE.final & (TABLE.group == "main")]
    record = {
        "study": "gmm", "figure": "fig3", "caption": "One (1) caption \\ — with signs.", "commit": "abc",
        "parameters": provenance.source(folder / "provenance.json", folder, fingerprint(parameters), notebooks=["5_figures"]),
        "drawn_from": [
            provenance.source(folder / "metrics.csv", folder, count=len(part)),
            provenance.source(run / "shown.safetensors", folder),
        ],
    }  # fmt: skip
    draw(folder, part, record)
    return folder, part, record


def draw(folder, part, record):
    figure, ax = plt.subplots()
    ax.plot(part.horizon, part.ode_error, "o")
    page.save(figure, folder, record)
    plt.close(figure)


def test_the_record_is_in_the_file(drawn):
    folder, part, record = drawn
    assert provenance.read(folder / "fig3.png") == record
    assert record["drawn_from"][0]["count"] == len(part) == 12
    files = [folder / "fig3.png", folder / "fig3.pdf"]
    before = [path.read_bytes() for path in files]
    draw(folder, part, record)
    assert [path.read_bytes() for path in files] == before, "no date is in them"


def test_a_figure_is_stale_when_what_it_shows_has_changed(drawn, capsys):
    folder, *_ = drawn
    png = str(folder / "fig3.png")
    assert provenance.report(png)[1] == []
    assert main(["provenance", png]) == 0
    out = capsys.readouterr().out
    for words in ("commit      abc", "metrics.csv, 12 rows", "up to date", "provenance.json"):
        assert words in out
    write_csv(folder / "metrics.csv", TABLE.assign(ode_error=TABLE.ode_error * 1.01))
    assert provenance.report(png)[1] == ["metrics.csv"]
    assert main(["provenance", str(folder)]) == 1
    assert "STALE: metrics.csv changed after it was drawn." in capsys.readouterr().out
    write_csv(folder / "metrics.csv", TABLE.drop(columns="steps"))
    assert provenance.report(png)[1] == ["metrics.csv"]
    write_csv(folder / "metrics.csv", TABLE)
    write_json(folder / "provenance.json", {"notebooks": {"5_figures": {"parameters": {"threads": 2}}}})
    shown = folder.parent / "run/shown.safetensors"
    write_tensors(shown, {"x": torch.arange(3.0)}, {"seconds": 2.0})  # the same numbers
    assert provenance.report(png)[1] == ["provenance.json"]
    write_tensors(shown, {"x": torch.ones(3)})
    assert provenance.report(png)[1] == ["provenance.json", "../run/shown.safetensors"]
    shown.unlink()
    assert "shown.safetensors" in provenance.report(png)[0] and "not here" in provenance.report(png)[0]


def test_what_is_no_figure_is_refused(tmp_path, capsys):
    plt.figure().savefig(tmp_path / "plain.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "plain.png").read_bytes()[:20])
    (tmp_path / "table.csv").write_text("a\n1\n")
    for name, message in [
        ("plain.png", "says nothing of where it came from"),
        ("cut.png", "cannot be read as a figure"),
        ("table.csv", "is no figure; allowed: png files"),
        ("none.png", "does not exist"),
    ]:
        with pytest.raises(InputError, match=message):
            provenance.report(tmp_path / name)
        assert main(["provenance", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
