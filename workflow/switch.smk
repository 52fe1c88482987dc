# Notebook 6 over the results of all studies that have been measured: `make switch`; over some, --config studies='gmm digits'.
#
# It reads results of notebook 5, not their students, so it takes half a minute on any machine.
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).parent
sys.path.insert(0, str(ROOT))
workdir: ROOT

from dcm.parameters.notebooks import SwitchParameters
from dcm.parameters.check import validate

if "MEASURED" not in globals():  # else by the studies of workflow/Snakefile, which includes this
    # One's own where they were measured here, else those of the repository.
    PLACES = [(f"results/local/{name}", f"results/{name}") for name in config.get("studies", "gmm gmm16 digits cifar10 cifar10_long cifar10_n50 cifar10_w9 cifar10_n50_w9 emoji cifar10_lora gmm16_w3 digits_sweep digits_further emoji_paper emoji_long emoji_cpu").split()]
    MEASURED = [folder for folder in (next((p for p in each if (ROOT / p / "metrics.csv").exists()), None) for each in PLACES) if folder]
RESULTS = "results/local/switch"


rule the_switch:
    input:
        expand("{folder}/metrics.csv", folder=MEASURED),
        notebook="notebooks/6_the_switch.ipynb",
    output:
        f"{RESULTS}/metrics.csv",
    params:
        values=validate(
            SwitchParameters, dict(results=MEASURED, run_dir="runs/switch", results_dir=RESULTS)
        ).model_dump(),
    script:
        "run_notebook.py"
