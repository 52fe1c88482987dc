# Notebook 7 and the studies behind it: `python workflow/study.py workflow/config/regimes.yaml -j 2`
#
# Each study is measured by the Snakefile of all studies (notebooks 1 to 4), so what is finished there is not run again.
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path.insert(0, str(ROOT))
workdir: ROOT

from dcm.support.errors import InputError
from dcm.parameters.study import RegimesConfig
from dcm.parameters.check import validate

try:
    regimes = validate(RegimesConfig, dict(config))
except InputError as error:
    sys.exit(f"{error}")

RUN, RESULTS = regimes.run_dir, regimes.results_dir
MEASURED = ["ode_error.csv", "quality.csv", "teacher_quality.csv"]


wildcard_constraints:
    study="[A-Za-z0-9_.-]+",


rule all:
    input:
        f"{RESULTS}/metrics.csv",


rule study:
    input:
        [f"notebooks/{name}.ipynb" for name in ("1_teacher", "2_distill", "3_ode_error", "4_sample_quality")],
    output:
        touch(f"{RUN}/{{study}}/all_measured"),  # the files themselves are the other Snakefile's
    params:
        files=lambda wildcards: [f"{RUN}/{wildcards.study}/{name}" for name in MEASURED],
        values=lambda wildcards: regimes.study(wildcards.study),
    threads: regimes.threads
    script:
        "run_study.py"


rule when_it_fails:
    input:
        expand(f"{RUN}/{{study}}/all_measured", study=regimes.studies),
        notebook="notebooks/7_when_it_fails.ipynb",
    output:
        f"{RESULTS}/metrics.csv",
    log:
        f"{RUN}/notebooks/7_when_it_fails.ipynb",
    params:
        values=regimes.notebook(),
    threads: regimes.threads
    script:
        "run_notebook.py"
