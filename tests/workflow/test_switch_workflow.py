"""The rule behind `make switch`, without running it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def planned(studies: str) -> str:
    command = ["-m", "snakemake", "-s", "workflow/switch.smk", "-n", "-F", "-p", "--nolock", "--config", f"studies={studies}"]
    run = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    return run.stdout + run.stderr


def test_the_switch_reads_what_is_there():
    """Of the studies asked for, those that were measured; where none was, one sentence."""
    assert re.search(r"input: \S*results/(local/)?digits/metrics.csv, notebooks/6_the_switch.ipynb", planned("digits nowhere"))
    assert "results = [] is not possible; allowed: a list of results folders of notebook 5." in planned("nowhere")
