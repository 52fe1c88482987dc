"""The page writer, the tables of a study, and its sentences."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from dcm.analysis import compare, measured
from dcm.horizon import Group
from dcm.metrics.metric import Metric
from dcm.report import provenance, sentences
from dcm.report.page import LONG, Page
from dcm.report.study import StudyResults
from dcm.support.errors import InputError
from dcm.support.files import write_csv, write_tensors
from dcm.training.saved import DistilledGroup

METRICS = {"swd_teacher": Metric("distance", ratio=True), "new": Metric("a new one", lower_is_better=False)}


def rows_of(group: str = "main", quality: float = 2.0, solver: str = "ddim") -> pd.DataFrame:
    """Three seeds; the Direct CM has half the ODE error, and `quality` times the distance."""
    rows = [
        # The third factor differs between methods: equal ratios have no verdict.
        dict(group=group, solver=solver, intervals=10, guidance=2.0, horizon=h, method=name, seed=seed, update=update,
             steps=1, ode_error=(0.2 if h == 1 else 0.1 * np.exp(0.01 * (seed - 1))) * (1 + 0.1 * seed) * 40 / update,
             swd_teacher=(1.0 if h == 1 else quality * np.exp(0.01 * (seed - 1))) * (1 + 0.1 * seed))
        for h, name in ((1, "CM"), (10, "Direct CM")) for seed in (0, 1, 2) for update in (20, 40)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_measured(run, rows: pd.DataFrame) -> None:
    write_csv(run / "ode_error.csv", rows.drop(columns="swd_teacher"))
    write_csv(run / "quality.csv", rows.drop(columns="ode_error"))


def test_a_page_has_its_figures_tables_and_sentences(tmp_path, capsys):
    own = {"notebook": "5_figures", "commit": "abc", "parameters": {"main_group": "main"}}
    behind = {"notebook": "1_teacher", "commit": "old", "parameters": {}, "wall_seconds": 1.5, "teacher_evaluations": 7}
    page, rows = Page(tmp_path, "gmm", {"1_teacher": behind, "5_figures": own}), measured.with_final(rows_of())
    (tmp_path / "ode_error.csv").write_text("x\n")
    page.csv("metrics", rows, tmp_path / "ode_error.csv")
    page.say("- one\n- two", "A name: <img src=x onerror=alert(1)>.")
    figure, ax = plt.subplots()
    ax.plot(rows.seed, rows.ode_error)
    page.figure(figure, "fig1", "Seed 0 <script>.", metrics=rows[rows.seed == 0])
    page.figure(figure, "fig2", "All.")
    page.table("tab1", pd.DataFrame({"<b>": ["a"]}), "A table.", rows)
    page.write("Results")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(
        "# Results\n\nDrawn by `notebooks/5_figures.ipynb`; do not edit.\n\n- one\n- two\n\nA name: &lt;img"
    )
    assert "![fig1](fig1.png)" in text and "## tab1" in text and "| &lt;b&gt;" in text and "<" not in text
    about = json.loads((tmp_path / "provenance.json").read_text())
    assert (about["commit"], about["wall_seconds"], about["teacher_evaluations"]) == ("abc", 1.5, 7)
    parts = {name: provenance.read(tmp_path / f"{name}.png")["drawn_from"] for name in ("fig1", "fig2")}
    assert [(p["file"], p.get("count")) for p in parts["fig1"]] == [("metrics.csv", 4), ("ode_error.csv", None)]
    assert [(p["file"], p.get("count")) for p in parts["fig2"]] == [("metrics.csv", None)]
    assert provenance.report(tmp_path / "fig1.png")[1] == []
    (tmp_path / "ode_error.csv").write_text("y\n")
    assert provenance.report(tmp_path / "fig1.png")[1] == ["ode_error.csv"], "metrics.csv was joined from it"


def test_a_long_table_is_folded_on_the_page_and_whole_in_its_file(tmp_path):
    page = Page(tmp_path, "gmm", {"5_figures": {"notebook": "5_figures", "commit": "c", "parameters": {}}})
    rows = pd.DataFrame({"seed": range(LONG + 1)})
    page.table("short", rows[:-1], "A table.")
    page.table("long", rows, "A <long> table.")
    (_, _, short), (_, _, folded) = page.sections
    assert short.startswith("|") and folded.startswith("<details><summary>31 lines: A &lt;long&gt; table.</summary>\n\n|")
    assert folded.endswith("|\n\n</details>") and (tmp_path / "long.md").read_text().startswith("|")


def test_tables_are_joined_once_and_final_is_a_groups_own_end(tmp_path):
    rows = pd.concat([rows_of(), rows_of("long").assign(update=lambda t: 10 * t["update"])])
    write_measured(tmp_path, rows.sample(frac=1, random_state=0))
    found = measured.measured(tmp_path, ["swd_teacher"])
    assert list(found) == [*measured.ROW_KEY, "ode_error", "swd_teacher", "final"] and len(found) == len(rows) == 24
    assert sorted(found["update"][found.final].unique()) == [40, 400]
    write_csv(tmp_path / "quality.csv", rows.drop(columns="ode_error")[1:])
    with pytest.raises(InputError, match="notebooks 3 and 4 measured different students"):
        measured.measured(tmp_path, [])
    write_measured(tmp_path, rows.assign(group="../../pwned"))
    with pytest.raises(InputError, match="ode_error.csv is damaged .*should match pattern"):
        measured.measured(tmp_path, [])
    write_measured(tmp_path, rows)
    (tmp_path / "quality.csv").write_text("")
    with pytest.raises(InputError, match="quality.csv is damaged .*; run notebooks 3 and 4 again"):
        measured.measured(tmp_path, [])
    (tmp_path / "quality.csv").unlink()
    with pytest.raises(InputError, match="quality.csv does not exist; run notebooks 1 to 4"):
        measured.measured(tmp_path, [])


def test_a_metric_that_is_newer_than_the_rows_is_not_measured(tmp_path):
    """It has a column in the rows, none in the table, and no verdict."""
    write_measured(tmp_path, rows_of())
    rows = measured.measured(tmp_path, METRICS)
    assert rows.new.isna().all()
    teacher = pd.DataFrame([dict(solver="ddim", intervals=10, guidance=2.0, swd_teacher=0.0)])
    table = sentences.main_table(rows, measured.with_columns(teacher, METRICS), METRICS)
    readable = sentences.readable_main(table, METRICS)
    assert list(table.method) == ["teacher", "CM", "Direct CM"] and list(readable) == ["solver", "measure", *table.method]
    assert "ODE error" in set(readable.measure) and "a new one ↑" not in set(readable.measure)
    last = measured.final_one_step(rows)
    assert set(compare.verdicts(last, METRICS).metric) == {"ode_error", "swd_teacher"}


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (2.0, "C2 supported: the Direct CM's samples are worse: distance 2 [1.95, 2.05] times the CM's, 3 seeds"),
        (
            0.35,
            "C2 contradicted: the Direct CM's samples are not worse, but better: distance 0.35 [0.341, 0.359] times",
        ),
    ],
)
def test_a_verdict_says_what_was_measured(quality, words):
    last = measured.final_one_step(
        measured.with_final(pd.concat([rows_of(quality=quality), rows_of("n2", 2.0, "heun")]))
    )
    claims = compare.verdicts(last, METRICS)
    main = sentences.at_main(claims, "main", 2.0, "swd_teacher")
    c1, c2 = sentences.verdict_lines(main, METRICS)
    assert c1.startswith("C1 supported: the Direct CM solves the ODE better: ODE error 0.5 [") and c2.startswith(words)
    assert sentences.verdict_lines(main, METRICS, numbers=False) == [c1.rpartition(": ")[0], c2.rpartition(": ")[0]]
    takeaway = sentences.takeaway(main, claims, METRICS, "swd_teacher")
    assert "C1 over 2 settings: 2 supported" in takeaway and ("C2 over 2 settings: 2" in takeaway) == (quality == 2)


def test_an_open_verdict_and_a_difference_are_said_as_such():
    claim = pd.DataFrame([dict(claim="C2", metric="new", effect="difference", value=-0.25, low=np.nan, high=np.nan, seeds=1, verdict="inconclusive", encoders="")])  # fmt: skip
    [line] = sentences.verdict_lines(claim, METRICS)
    assert line == (
        "C2 inconclusive: it is open whose samples are worse: a new one differs from the CM's by -0.25 (no interval), 1 seeds"
    )


def test_a_foreign_file_of_samples_is_refused(tmp_path):
    write_tensors(tmp_path / "samples_shown.safetensors", {"weight": torch.zeros(2)})
    group = DistilledGroup("main", Group("ddim", 10, (2.0,), (1, 10), (0,)), [40], {}, tmp_path, {})
    rows = measured.with_final(rows_of())
    with pytest.raises(InputError, match="does not hold the samples of notebook 4"):
        StudyResults(tmp_path, group, rows, rows, rows).shown_samples()
