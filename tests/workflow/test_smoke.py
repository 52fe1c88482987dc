"""Every notebook through papermill and Snakemake at smoke size, and what Snakemake plans afterwards. Takes minutes."""

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from PIL import Image
from tiny_pipeline import saved

from dcm.analysis.runs import load
from dcm.report.provenance import report

ROOT = Path(__file__).parents[2]
FIGURES = [f"fig{i}" for i in range(1, 11)]


def read(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text())


# Behind tests/guard every process of a run logs itself, and no other machine can be reached.
NETWORK_LOG = Path(tempfile.mkdtemp()) / "network"
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests/guard"), str(ROOT), os.environ.get("PYTHONPATH")])),
    "DCM_NETWORK_LOG": str(NETWORK_LOG),
}


def command(config: dict, folder: Path, *options: str) -> list[str]:
    """The command line that runs `config`, as the Makefile does."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return [sys.executable, str(ROOT / "workflow/study.py"), str(path), *options]


def study(config: dict, folder: Path, *options: str) -> str:
    """Run the study `config`; its output, with the exit status in the first line."""
    result = subprocess.run(
        command(config, folder, *options), cwd=folder, capture_output=True, text=True, env=ENVIRONMENT
    )
    return f"exit {result.returncode}\n{result.stdout}{result.stderr}"


def planned(config: dict, folder: Path) -> list[str]:
    """Rules that a run would start now; distillations with their group."""
    out = study(config, folder, "-n", "-j", "1")
    assert out.startswith("exit 0"), out
    rules, lines = [], out.splitlines()
    for i, line in enumerate(lines):
        if line.startswith(("rule ", "localrule ")):
            name = line.split()[1].rstrip(":")
            group = (
                [part.split("group=")[1] for part in lines[i : i + 12] if "group=" in part][:1]
                if name == "distill"
                else []
            )
            rules.append(":".join([name, *group]))
    return sorted(rules)


@pytest.fixture(scope="module")
def gmm(tmp_path_factory):
    """The smoke study, run: (its configuration, the folder it ran in)."""
    folder = tmp_path_factory.mktemp("gmm")
    config = read("smoke") | {"run_dir": str(folder / "run"), "results_dir": str(folder / "results")}
    assert planned(config, folder) == sorted(
        [
            "all",
            "teacher",
            "distill:main",
            "distill:guidance",
            "distill:heun",
            "distill:n5",
            "ode_error",
            "sample_quality",
            "figures",
        ]
    )
    plant(folder)
    out = study(config, folder, "-j", "2")
    assert out.startswith("exit 0"), out
    # Two lines a notebook, and bars (12:34) of what takes more than a minute, on a busy machine; nothing else.
    said = [line for line in out.splitlines()[1:] if line.strip() and not re.search(r"\d:\d\d", line)]
    names = ["1_teacher", *(f"2_distill-{g}" for g in config["groups"]), "3_ode_error", "4_sample_quality", "5_figures"]
    lines = [f"run {name} {word}" for name in names for word in ("..", "done in")]
    assert sorted(re.sub(r" \d+ s$", "", line) for line in said) == sorted(lines), out
    return config, folder


def plant(folder: Path) -> None:
    """Leave files in the run's and the results' folders that say so when they are executed."""
    code = f"open({str(folder / 'executed')!r}, 'a').write(__file__)\n"
    names = [
        "sitecustomize.py",
        "usercustomize.py",
        "torch.py",
        "pandas.py",
        "dcm.py",
        "conftest.py",
        "ipython_config.py",
    ]
    for place in ("run", "results", "run/students", "run/teacher", "run/notebooks", "run/provenance"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / place / name).write_text(code)


def check_results(folder: Path, study: str, sweeps: bool) -> None:
    results = folder / "results"
    figures = [f for f in FIGURES if sweeps or f not in ("fig3", "fig4", "fig5", "fig8")]
    for name in figures:
        assert (results / f"{name}.png").stat().st_size > 5000 and (results / f"{name}.pdf").stat().st_size > 3000
        assert report(results / f"{name}.png")[1] == []
    for name in ("tab1", "verdicts"):
        assert (results / f"{name}.csv").stat().st_size > 0 and "|" in (results / f"{name}.md").read_text()
    page = (results / "README.md").read_text()
    assert all(f"![{name}]" in page for name in figures) and "C1 " in page and "C2 " in page
    provenance = json.loads((results / "provenance.json").read_text())
    assert provenance["teacher_evaluations"] > 0 and provenance["notebooks"]["2_distill-main"]["packages"]["torch"]
    executed = {p.stem for p in (folder / "run/notebooks").glob("*.ipynb")}
    assert executed >= {"1_teacher", "2_distill-main", "5_figures"} and not list(folder.rglob("*.html"))
    assert study in page


def test_every_figure_and_table_is_there(gmm):
    config, folder = gmm
    check_results(folder, "gmm", sweeps=True)
    rows = pd.read_csv(folder / "results/metrics.csv")
    last = rows[rows.final & (rows.steps == 1)]
    assert len(last) == 6 * 3 + 3 * 2 * 3  # horizons x seeds of main, and of the three other groups
    assert (rows.ode_error > 0).all() and rows.notna().all().all()


def test_nothing_in_a_results_folder_was_executed(gmm):
    _, folder = gmm
    assert (folder / "run/students/torch.py").exists() and not (folder / "executed").exists()


def test_no_other_machine_was_asked_for_anything(gmm):
    lines = NETWORK_LOG.read_text().splitlines()
    assert len([line for line in lines if line.startswith("started")]) > 2 * 8, "every script, and what asks for its kernel"
    assert [line for line in lines if not line.startswith("started")] == []


def test_a_second_run_does_nothing(gmm):
    assert planned(*gmm) == []


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("groups", "heun", "seeds"), [0, 1], ["distill:heun", "ode_error", "sample_quality", "figures"]),
        (("ode_error", "start_times"), 2, ["ode_error", "figures"]),
    ],
)
def test_a_changed_parameter_reruns_only_what_depends_on_it(gmm, path, value, expected):
    config, folder = gmm
    changed = yaml.safe_load(yaml.safe_dump(config))
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert planned(changed, folder) == sorted(["all", *expected])


def interrupted_at(run: Path, since: float) -> str:
    """Which cells of which notebooks were running, by what papermill had saved of them."""
    at = []
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        if path.stat().st_mtime >= since:
            try:
                cells = json.loads(path.read_text())["cells"]
            except ValueError:
                at.append(f"{path.stem} (its page half-written)")
                continue
            running = [c for c in cells if c["metadata"].get("papermill", {}).get("status") == "running"]
            at.append(f"{path.stem}: {''.join(running[0]['source']).splitlines()[-1][:60]}" if running else path.stem)
    return "; ".join(at) or "between notebooks"


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to Snakemake, its scripts and their kernels at once."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


STAGES = ["1_teacher", "2_distill", ("3_ode_error", "4_sample_quality"), "5_figures"]  # notebooks by their order


def wait_for_stage(run: Path, stage: int, process: subprocess.Popen) -> None:
    """Wait until a notebook of this stage, or of a later one, runs, or the process ends."""
    names = tuple(name for s in STAGES[stage:] for name in ([s] if isinstance(s, str) else s))
    begin = time.time()
    while process.poll() is None and time.time() - begin < 300:
        if any(p.stem.startswith(names) and p.stat().st_mtime > begin for p in (run / "notebooks").glob("*.ipynb")):
            return
        time.sleep(0.2)


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(gmm, tmp_path):
    """Run again with -j 1, kill everything (SIGKILL) at random moments, start it anew each time.

    metrics.csv is that of the undisturbed run (-j 2), byte for byte. In CI: one group, killed once in training and
    once in plotting; with ``make faults``: every group, 20 kills spread at random over all stages and moments.
    """
    config, folder = gmm
    kills, groups = int(os.environ.get("DCM_KILLS", 0)), config["groups"]
    rng = random.Random()
    stages = sorted(rng.choices(range(len(STAGES)), k=kills)) if kills else [1, 3]
    if not kills:
        groups = {name: groups[name] for name in ("main",)}
    lines = (folder / "results/metrics.csv").read_text().splitlines()
    expected = [line for line in lines if line.split(",")[0] in ("group", *groups)]
    alone = config | {"run_dir": str(tmp_path / "run"), "results_dir": str(tmp_path / "results"), "groups": groups}
    for number, stage in enumerate(stages, 1):
        start = time.time()
        process = subprocess.Popen(
            command(alone, tmp_path, "-j", "1"), cwd=tmp_path, env=ENVIRONMENT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_stage(tmp_path / "run", stage, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert process.wait(rng.uniform(0, 20 if kills else 8)) == 0, "it ended by itself, and not well"
            # It came to its end first: what is done need not be done again, so have it plot anew.
            (tmp_path / "results/metrics.csv").unlink()
            continue
        kill_all(process)
        print(f"kill {number}, {time.time() - start:.1f} s: {interrupted_at(tmp_path / 'run', start)}")
    out = study(alone, tmp_path, "-j", "1")
    assert out.startswith("exit 0"), out
    assert (tmp_path / "results/metrics.csv").read_text().splitlines() == expected and len(expected) > 30
    if len(groups) == len(config["groups"]):
        assert (tmp_path / "results/metrics.csv").read_bytes() == (folder / "results/metrics.csv").read_bytes()


def test_the_image_path(tmp_path):
    config = read("smoke_digits") | {"run_dir": str(tmp_path / "run"), "results_dir": str(tmp_path / "results")}
    out = study(config, tmp_path, "-j", "2")
    assert out.startswith("exit 0") and "arning" not in out and "ERROR" not in out, out
    check_results(tmp_path, "digits", sweeps=False)


def test_a_strangers_pipeline(tmp_path):
    """What DDPMPipeline saved, by configuration alone, with images in a folder: from the teacher to the last figure."""
    model = saved(tmp_path / "model", num_train_timesteps=200, beta_end=0.1)  # 200: the finest reference takes as many steps
    images = tmp_path / "images"
    images.mkdir()
    for i in range(30):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)).save(images / f"{i}.png")
    given = read("smoke_digits") | {"study": "diffusers", "run_dir": str(tmp_path / "run"), "results_dir": str(tmp_path / "results")}
    given["teacher"] = read("diffusers")["teacher"] | {
        "model": str(model), "data": "folder", "data_dir": str(images), "samples": 16, "intervals": [5, 10]}  # fmt: skip
    given["groups"] = {"main": given["groups"]["main"] | {"guidance": [1.0], "snapshots": 0}}
    given["evaluation"] = {"samples": 16, "steps": [1]}
    out = study(given, tmp_path, "-j", "2")
    assert out.startswith("exit 0") and "arning" not in out and "ERROR" not in out, out
    check_results(tmp_path, "diffusers", sweeps=False)
    rows = pd.read_csv(tmp_path / "results/metrics.csv")
    assert {"fd_teacher", "fd_real", "fd_pixels", "paired"} <= set(rows) and "agreement" not in rows
    assert "EfficientNet-Lite0" in (tmp_path / "results/tab1.md").read_text()


def test_the_regimes(gmm):
    """Notebook 7 on the smoke study, as one configuration for both; what notebooks 1 to 4 measured is not run again."""
    config, folder = gmm
    (folder / "run/results").symlink_to(folder / "results")
    study = {k: v for k, v in config.items() if not k.endswith("_dir")}
    values = {"run_dir": str(folder), "results_dir": str(folder / "regimes"), "studies": {"run": study}}
    path = folder / "regimes.yaml"
    path.write_text(yaml.safe_dump(values))
    run = [sys.executable, ROOT / "workflow/study.py", path, "-j"]
    done = subprocess.run([*map(str, run), "2"], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    out = done.stdout + done.stderr
    assert done.returncode == 0, out
    assert "7_when_it_fails done" in out and "2_distill" not in out and "3_ode_error" not in out, out
    again = subprocess.run([*map(str, run), "1", "-n"], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT)
    assert "Nothing to be done" in again.stdout + again.stderr
    results = folder / "regimes"
    assert (results / "plane.png").stat().st_size > 5000 and report(results / "plane.png")[1] == []
    claims = pd.read_csv(results / "verdicts.csv")
    assert set(claims.regime) >= {"main", "steps 2", "steps 4", "intervals 5", "solver heun", "guidance 1"} and (claims.seeds == 3).all()
    page = (results / "README.md").read_text()
    assert "**gmm**, " in page and "nan" not in page
    [measured], [kept] = (load(str(path)) for path in (folder / "run", results))
    assert kept.groups == measured.groups and set(kept.records) == set(measured.records)
    rounded = {"index": False, "float_format": "%.6g"}
    assert kept.rows.to_csv(**rounded) == measured.rows.to_csv(**rounded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"updates": 0, "batch": 8}}, "updates = 0 is not possible; allowed: a whole number, at least 1"),
        ({"gruops": {}}, "gruops is not a parameter"),
    ],
)
def test_a_bad_config_is_refused_before_anything_runs(tmp_path, change, message):
    config = read("smoke") | {"run_dir": str(tmp_path / "run")} | change
    out = study(config, tmp_path, "-j", "1")
    assert not out.startswith("exit 0") and message in out and "Traceback" not in out
    assert not (tmp_path / "run").exists()
