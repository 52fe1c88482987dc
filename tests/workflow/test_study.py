"""What workflow/ does around a study: one at a time, damaged files made again, results apart and compared."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import compare
import cost
import pandas as pd
import pytest
import run_notebook
import study
import torch
import yaml

from dcm.parameters.check import validate
from dcm.parameters.study import StudyConfig
from dcm.report import provenance
from dcm.support import lock
from dcm.support.errors import InputError
from dcm.support.files import write_csv, write_json, write_tensors

ROOT = Path(__file__).parents[2]
SMOKE = yaml.safe_load((ROOT / "workflow/config/smoke.yaml").read_text())
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != lock.HELD} | {"PYTHONPATH": str(ROOT)}


def configured(folder: Path, **changed) -> Path:
    path = folder / "config.yaml"
    folders = {"run_dir": str(folder / "run"), "results_dir": str(folder / "results")}
    path.write_text(yaml.safe_dump(SMOKE | folders | changed))
    return path


def script(name: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "workflow" / name), *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)


def test_two_studies_and_a_notebook_in_one_folder(tmp_path):
    config = configured(tmp_path)
    command = [sys.executable, str(ROOT / "workflow/study.py"), str(config), "-j", "1"]
    first = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/notebooks/1_teacher.ipynb").exists():
        assert first.poll() is None
        time.sleep(0.1)
    expected = f"{tmp_path}/run is in use: process {first.pid} has been running a study there since "
    second = script("study.py", config, "-j", "1")
    assert second.returncode == 1 and second.stderr.startswith(expected) and second.stderr.count("\n") == 1
    by_hand = script(
        "run_notebook.py", "notebooks/1_teacher.ipynb", tmp_path / "out.ipynb", "-p", "run_dir", tmp_path / "run"
    )
    assert by_hand.returncode == 1 and expected in by_hand.stderr and "Traceback" not in by_hand.stderr
    assert by_hand.stderr.count("\n") == 1
    first.kill()
    first.wait()
    assert script("study.py", config, "-n").returncode == 0


@pytest.fixture
def run(tmp_path):
    """A run's folder as rules leave it: of distill, ode_error, teacher (trained)."""
    run = tmp_path / "run"
    write_tensors(run / "students/main.safetensors", {"x": torch.ones(40)})
    write_tensors(run / "teacher/weights.safetensors", {"x": torch.ones(40)})
    write_json(run / "teacher/teacher.json", {"study": "digits"})
    for name in ("1_teacher", "2_distill-main", "3_ode_error"):
        write_json(run / f"provenance/{name}.json", {"notebook": name})
    write_csv(run / "ode_error.csv", pd.DataFrame({"a": range(9)}))
    write_csv(run / "quality.csv", pd.DataFrame({"a": range(9)}))  # notebook 4 was run by hand: it left no note
    rules = {
        "1_teacher": "teacher/teacher.json",
        "2_distill-main": "students/main.safetensors",
        "3_ode_error": "ode_error.csv",
    }
    for name, output in rules.items():
        beside = [run / "teacher"] if name == "1_teacher" else []
        outputs, notebook = [str(run / output)], Path(f"{name}.ipynb")
        run_notebook.note(run, notebook, outputs, [*beside, run / f"provenance/{name}.json"])
    assert not study.remove_damaged(run, costly=True)
    return run


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def left(run: Path) -> set[str]:
    return {str(p.relative_to(run)) for p in run.rglob("*.*") if p.parent.name != "checksums"}


@pytest.mark.parametrize(
    ("name", "harm", "why", "removed"),
    [
        ("ode_error.csv", cut, "is not as it was written", ["ode_error.csv"]),  # the table can still be read
        ("quality.csv", lambda p: p.write_text(""), "is damaged (No columns to parse from file)", ["quality.csv"]),
        ("quality.csv", lambda p: p.write_text("a\n"), "has no rows", ["quality.csv"]),
        ("students/main.safetensors", cut, "is damaged", ["students/main.safetensors"]),
        ("students/main.safetensors", lambda p: p.write_text(""), "is damaged", ["students/main.safetensors"]),
        ("provenance/3_ode_error.json", cut, "is not as", ["ode_error.csv", "provenance/3_ode_error.json"]),
        ("provenance/3_ode_error.json", Path.unlink, "is gone", ["ode_error.csv", "provenance/3_ode_error.json"]),
        ("teacher/weights.safetensors", Path.unlink, "is gone", ["teacher/weights.safetensors", "teacher/teacher.json"]),
        ("checksums/3_ode_error.json", cut, "", []),
    ],
)  # fmt: skip
def test_a_damaged_file_is_made_again(run, capsys, name, harm, why, removed):
    before = left(run)
    harm(run / name)
    assert study.remove_damaged(run, costly=False) == bool(why)
    assert before - left(run) == set(removed)
    said = capsys.readouterr().err
    assert said.startswith(f"{run / name} {why}" if why else "") and said.count("\n") == bool(why)
    assert not study.remove_damaged(run, costly=False), "what is gone now is Snakemake's to make"


def test_what_took_hours_is_asked_for(run):
    cut(run / "teacher/weights.safetensors")
    everything = left(run)
    with pytest.raises(
        InputError, match="weights.safetensors is damaged .* or delete .*weights.safetensors to have it made"
    ):
        study.remove_damaged(run, costly=False)
    (run / "teacher/weights.safetensors").unlink()
    (run / "provenance/2_distill-main.json").unlink()
    with pytest.raises(
        InputError, match="2_distill-main.json is gone, and .* or delete .*students/main.safetensors to"
    ):
        study.remove_damaged(run, costly=True)
    assert everything - left(run) == {"teacher/weights.safetensors", "provenance/2_distill-main.json"}


@pytest.mark.parametrize("git", [True, False])
def test_folders_of_the_repository_are_refused(tmp_path, monkeypatch, git):
    """Also in a copy without git, where nobody knows which files are tracked."""
    if not git:
        absent = subprocess.CompletedProcess([], 128, "", "not a git repository")
        monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: absent)
    for name, folder in (("results_dir", "results/gmm"), ("run_dir", "results/digits"), ("results_dir", "results")):
        with pytest.raises(InputError, match=f"{name} = {folder} holds files of the repository"):
            study.prepare([str(configured(tmp_path, **{name: folder}))], download=False)
    assert not (tmp_path / "run").exists()


def test_studies_side_by_side_have_folders_of_their_own(tmp_path):
    (tmp_path / "other").mkdir()
    first, other = configured(tmp_path), configured(tmp_path / "other", groups={"main": SMOKE["groups"]["main"]})
    planned = script("study.py", first, other, "--switch", "-j", "1", "-n")
    counts = dict(re.findall(r"^(\w+) +(\d+)$", planned.stdout + planned.stderr, re.MULTILINE))
    assert counts == {"all": "1", "teacher": "2", "distill": "5", "ode_error": "2", "sample_quality": "2", "figures": "2", "the_switch": "1", "total": "15"}
    with pytest.raises(InputError, match="run_dir is that of two studies; allowed: one for each."):
        study.prepare([str(first), str(first)], download=False)


def test_download_is_passed_on(tmp_path):
    values = yaml.safe_load((ROOT / "workflow/config/cifar10.yaml").read_text())
    values |= {"run_dir": str(tmp_path / "run"), "results_dir": str(tmp_path / "results")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    planned = script("study.py", tmp_path / "config.yaml", "-j", "1", "--download", "-n")
    assert planned.returncode == 0 and "rule teacher" in planned.stdout + planned.stderr
    [asked], _ = study.configured([str(tmp_path / "config.yaml")], download=True)
    assert (asked.teacher["download"], asked.teacher["data"]) == (True, "cifar10")
    assert asked.notebook("1_teacher")["download"]


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Results of a run here: those of the repository, copied."""
    monkeypatch.setattr(compare, "LOCAL", tmp_path / "local")
    shutil.copytree(ROOT / "results/gmm", tmp_path / "local/gmm", ignore=shutil.ignore_patterns("*.pdf"))
    return tmp_path / "local/gmm"


def test_compare_says_what_differs_from_what_is_shipped(local, capsys):
    compare.compare(local)
    same = capsys.readouterr().out.splitlines()
    claims = pd.read_csv(local / "verdicts.csv")
    main = claims[(claims.group == "main") & (claims.claim == "C1")].iloc[0]
    assert same[0] == "gmm" and len(same) <= 6
    assert (
        same[1]
        == f"  C1 {main.verdict} by ode_error (ode_error: ratio {main.value:.3g} [{main.low:.3g}, {main.high:.3g}])"
    )
    assert f"{len(claims)} of {len(claims)} verdicts as shipped" in same[3] and " metric: 0 " in same[4]
    assert same[5] == f"  open {local / 'index.html'}"
    rows = pd.read_csv(local / "metrics.csv")
    rows.loc[7, "ode_error"] *= 1.25
    write_csv(local / "metrics.csv", rows.sample(frac=1, random_state=0))  # in any order
    claims.loc[2, "verdict"] = "undecided"
    write_csv(local / "verdicts.csv", claims)
    compare.compare(local)
    other = capsys.readouterr().out.splitlines()
    assert f"{len(claims) - 1} of {len(claims)} verdicts" in other[3] and "undecided, shipped" in other[3]
    assert (
        other[4].startswith("  largest relative difference of a metric: 0.25 (ode_error ")
        and f"seed {rows.seed[7]}" in other[4]
    )


def test_the_page_shows_every_figure_and_runs_nothing(local):
    with (local / "README.md").open("a") as file:
        file.write("\n<script>alert(1)</script>\n\n[x](javascript:alert(1)) <b onclick=x>\n")
    page = compare.write_page(local).read_text()
    figures = [p.name for p in local.glob("*.png")]
    assert len(figures) >= 9 and all(f'<img src="{name}"' in page for name in figures) and "<table>" in page
    assert "<script" not in page and "&lt;script" in page and 'href="javascript' not in page and "<b " not in page
    assert "src=" in page and 'src="http' not in page


def test_publishing_replaces_what_was_shipped(local, tmp_path, monkeypatch):
    shipped = tmp_path / "results/gmm"
    monkeypatch.setattr(compare, "SHIPPED", tmp_path / "results")
    with pytest.raises(InputError, match="has no metrics.csv: run its study first"):
        compare.publish("digits")
    shipped.mkdir(parents=True)
    for name in ("metrics.csv", "fig99.png", "dry_run.md", "notes.txt"):
        (shipped / name).write_text("old")
    for name in ("index.html", "fig1.pdf"):
        (local / name).write_text("not shipped")
    compare.publish("gmm")
    names = {p.name for p in shipped.iterdir()}
    assert names == {p.name for p in local.glob("*.*")} - {"index.html", "fig1.pdf"} | {"dry_run.md", "notes.txt"}
    assert (shipped / "metrics.csv").read_bytes() == (local / "metrics.csv").read_bytes()


def test_a_run_here_makes_no_figure_stale_that_is_shipped(tmp_path, monkeypatch):
    """What was published was drawn from files of another machine, which have the same names as those of a run here."""
    monkeypatch.setattr(provenance, "RESULTS", tmp_path / "results")
    for folder in ("runs/gmm", "results/gmm", "results/local/gmm"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "runs/gmm/ode_error.csv").write_text("a\n1\n")
    entry = {"file": "../../runs/gmm/ode_error.csv", "fingerprint": "that of another machine"}
    assert provenance.state(entry, tmp_path / "results/gmm") == "not here"
    assert provenance.state(entry | {"file": f"../{entry['file']}"}, tmp_path / "results/local/gmm") == "changed"
    (tmp_path / "results/gmm/metrics.csv").write_text("a\n1\n")
    assert provenance.state(entry | {"file": "metrics.csv"}, tmp_path / "results/gmm") == "changed"


def test_a_notebook_by_hand_ends_in_one_sentence(tmp_path):
    options = ["-p", "intervals", "30", "-y", "horizons: [cm, 5, direct]", "-p", "run_dir", tmp_path / "run"]
    done = script("run_notebook.py", "notebooks/2_distill.ipynb", tmp_path / "out.ipynb", *options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "notebooks/2_distill.ipynb: intervals = 30 does not divide" in done.stderr
    assert json.loads((tmp_path / "out.ipynb").read_text())["cells"] and not (tmp_path / "run").exists()
    assert [run_notebook.value(t) for t in ("1e-4", "7", "gmm", "true", "[1.0, 2]")] == [1e-4, 7, "gmm", True, [1.0, 2]]


def test_an_executed_notebook_does_not_follow_a_link(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out.ipynb").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(
        "papermill.execute_notebook", lambda source, executed, *_, **__: Path(executed).write_text("run")
    )
    run_notebook.execute("a.ipynb", tmp_path / "out.ipynb", {})
    assert (tmp_path / "precious").read_text() == "mine" and (tmp_path / "out.ipynb").read_text() == "run"


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        ({"updates": 100}, {"updates": 110}),
        ({"intervals": 10}, {}),
        ({"horizons": ["cm"]}, {"horizons": ["direct"]}),  # one solver step an update, against all of them
        ({"horizons": [20]}, {"horizons": ["direct", 25]}),
        ({"solver": "ddim"}, {"solver": "heun"}),
        ({"pairs_per_trajectory": 4}, {}),
        ({}, {"guidance": [1.0, 3.0]}),
        ({}, {"seeds": [0, 1]}),
    ],
)
def test_groups_are_ordered_by_what_they_cost(cheaper, dearer):
    base = {"solver": "ddim", "intervals": 50, "guidance": [2.0], "horizons": ["cm", "direct"], "seeds": [0]}
    for groups in ({"main": base | dearer, "other": base | cheaper}, {"other": base | cheaper, "main": base | dearer}):
        groups["ends"] = base | {"updates": 1}
        config = validate(StudyConfig, SMOKE | {"groups": groups, "main_group": "ends"})
        assert [group for _, group in cost.costliest_last([config])] == ["ends", "other", "main"]
