# Notebook 7 once more, over all studies whose regimes have been measured: `make regimes-all`.
#
# It reads the results of `make study-regimes` and `make study-regimes_cifar10`, or those of the repository, not their
# students, so it takes a minute on any machine.
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path.insert(0, str(ROOT))
workdir: ROOT

from dcm.parameters.notebooks import RegimeParameters
from dcm.parameters.check import validate

# One's own where they were measured here, else those of the repository.
MEASURED = [
    next(folder for folder in (f"results/local/{name}", f"results/{name}") if Path(folder, "metrics.csv").exists() or "local" not in folder)
    for name in ("regimes", "regimes_cifar10")
]
RESULTS = "results/local/regimes_all"


rule when_it_fails:
    input:
        expand("{folder}/metrics.csv", folder=MEASURED),
        notebook="notebooks/7_when_it_fails.ipynb",
    output:
        f"{RESULTS}/metrics.csv",
    params:
        values=validate(
            RegimeParameters, dict(runs=MEASURED, run_dir="runs/regimes_all", results_dir=RESULTS)
        ).model_dump(),
    script:
        "run_notebook.py"
