"""Progress bars: a widget in JupyterLab, plain text on the terminal in batch runs."""

from __future__ import annotations

import os

from tqdm.auto import tqdm as widget
from tqdm.std import tqdm as text

BATCH = "DCM_BATCH"  # set by workflow/run_notebook.py


def tqdm(*args, **options):
    """tqdm as it suits the place; in a batch run, where nobody sees widgets, text that moves every ten seconds."""
    return text(*args, mininterval=10, **options) if os.environ.get(BATCH) else widget(*args, **options)
