"""Progress bars: a widget in JupyterLab, a line a minute on the terminal in batch runs."""

import os

from tqdm.auto import tqdm as widget
from tqdm.std import tqdm as text

BATCH = "DCM_BATCH"  # set where nobody sees widgets: by workflow/run_notebook.py, or to "silent" for stored notebooks


def tqdm(*args, **options):
    """tqdm as it suits the place; in a batch run only what takes more than a minute shows."""
    batch = os.environ.get(BATCH)
    if not batch:
        return widget(*args, **options)
    return text(*args, **{"mininterval": 60, "delay": 60, "disable": batch == "silent"} | options)
