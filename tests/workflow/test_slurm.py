"""A study through SLURM, where one answers (.ci/slurm starts one): jobs in their partitions, a job killed and gone on with."""

import shutil
import subprocess
import time

import pytest
import yaml
from test_smoke import ENVIRONMENT, ROOT, command, read

from dcm.support.files import read_tensors, tensors_digest

PROFILE = ROOT / "workflow/profiles/slurm"
LONGEST = 900  # seconds of a part of the test: of seconds on an idle machine, of minutes on a busy one


def said(*words: str) -> str:
    """What a command prints; nothing where there is none, or it fails."""
    if not shutil.which(words[0]):
        return ""
    return subprocess.run(words, capture_output=True, text=True).stdout


nodes = set(said("sinfo", "-h", "-o", "%T").split())
pytestmark = pytest.mark.skipif(not nodes & {"idle", "mixed", "allocated"}, reason="no SLURM with a working node answers here")


def test_the_profile_names_rules_and_resources_that_there_are():
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    rules = {line.split()[1].rstrip(":") for line in (ROOT / "workflow/Snakefile").read_text().splitlines() if line.startswith("rule ")}
    assert profile["executor"] == "slurm" and set(profile["set-resources"]) <= rules


def test_a_killed_job_goes_on_and_ends_with_the_same_numbers(tmp_path):
    """Notebooks 1 and 2 of the smoke study's main group: through SLURM with its job killed after a checkpoint, and without."""
    base, results = read("smoke"), {}
    base["groups"] = {"main": base["groups"]["main"] | {"updates": 1000, "checkpoint_seconds": 0.5}}
    for name in ("slurm", "plain"):
        (tmp_path / name).mkdir()
        results[name] = base | {"run_dir": str(tmp_path / name / "run"), "results_dir": str(tmp_path / name / "results")}
    profile = yaml.safe_load((PROFILE / "config.yaml").read_text())
    profile["default-resources"]["mem_mb"] = 300  # a small machine must hold two jobs at once
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile/config.yaml").write_text(yaml.safe_dump(profile))
    short = ["--until", "distill"]  # what comes after is but more jobs, of half a minute each
    options = [*short, "--profile", str(tmp_path / "profile"), "--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "2"]
    options += ["--slurm-logdir", str(tmp_path / "logs")]
    start = lambda: subprocess.Popen(
        command(results["slurm"], tmp_path / "slurm", *options), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    jobs = lambda: [line.split() for line in said("squeue", "-h", "-t", "all", "-o", "%i %P %T %k").splitlines()]
    before = {job[0] for job in jobs()}
    mine = lambda: [job for job in jobs() if job[0] not in before]

    alone = command(results["plain"], tmp_path / "plain", *short, "-j", "1")
    plain = subprocess.Popen(alone, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    first, checkpoint = start(), tmp_path / "slurm/run/checkpoints/main.safetensors"
    end = time.monotonic() + LONGEST
    while not checkpoint.exists():
        assert first.poll() is None and time.monotonic() < end, f"{jobs()} {first.kill() or first.communicate()[0]}"
        time.sleep(0.2)
    [training] = [job for job in mine() if job[2] == "RUNNING"]
    assert training[1] == "gpu" and "distill" in training[3]
    said("scancel", training[0])
    assert first.wait(LONGEST) != 0 and not (tmp_path / "slurm/run/students/main.safetensors").exists()

    second = start()
    out, _ = second.communicate(timeout=LONGEST)
    assert second.returncode == 0, out
    assert "Going on after update" in (tmp_path / "slurm/run/notebooks/2_distill-main.ipynb").read_text()
    assert {(job[1], job[2]) for job in mine()} == {("gpu", "CANCELLED"), ("gpu", "COMPLETED"), ("cpu", "COMPLETED")}

    out, _ = plain.communicate(timeout=LONGEST)
    assert plain.returncode == 0, out
    [ours, theirs] = [tensors_digest(read_tensors(tmp_path / name / "run/students/main.safetensors")[0]) for name in results]
    assert ours == theirs
