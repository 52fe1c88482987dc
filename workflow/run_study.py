"""Measure one of the regimes' studies: the Snakefile of all studies, up to what notebooks 3 and 4 write."""

import subprocess
import sys
from pathlib import Path

import yaml

run = Path(snakemake.params.values["run_dir"])  # noqa: F821
run.mkdir(parents=True, exist_ok=True)
config = run / "config.yaml"
config.write_text(yaml.safe_dump(snakemake.params.values, sort_keys=False))  # noqa: F821
command = [sys.executable, "workflow/study.py", config, "-j", snakemake.threads, "--", *snakemake.params.files]  # noqa: F821
sys.exit(subprocess.run([str(part) for part in command]).returncode)
