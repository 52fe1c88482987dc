# Notebook 6 once more, over all studies whose regimes have been measured: `make regimes-all`.
#
# It reads the results of `make study-regimes` and `make study-regimes_cifar10`, not their students, so it takes a
# minute on any machine, whoever measured them.
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path.insert(0, str(ROOT))
workdir: ROOT

from dcm.parameters.regimes import RegimeParameters
from dcm.parameters.check import validate

MEASURED = ["results/regimes", "results/regimes_cifar10"]
RESULTS = "results/regimes_all"


rule when_it_fails:
    input:
        expand("{folder}/{table}", folder=MEASURED, table=["metrics.csv", "maps_by_time.csv", "maps_from_noise.csv"]),
        notebook="notebooks/6_when_it_fails.ipynb",
    output:
        f"{RESULTS}/metrics.csv",
        html=f"{RESULTS}/notebooks/6_when_it_fails.html",
    params:
        values=validate(
            RegimeParameters, dict(runs=MEASURED, run_dir="runs/regimes_all", results_dir=RESULTS)
        ).model_dump(),
    script:
        "run_notebook.py"
