"""Run one notebook through papermill with a rule's parameters and keep it, executed, as html."""

import os
import sys
from pathlib import Path

import nbconvert
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

# glibc hands a network's buffers back to the system after a layer and takes them anew, page by page, for the next.
# Kernels keep up to a gigabyte instead, and buffers of more than 32 MB (the most that it allows) go back as ever. A C
# library reads this when a process starts; others than glibc do not.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def run(source: str, parameters: dict, html: str) -> None:
    """Execute `source`; on failure leave the half-run notebook beside `html` and exit with one sentence."""
    executed = Path(html).with_suffix(".ipynb")
    executed.parent.mkdir(parents=True, exist_ok=True)
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    os.environ["DCM_BATCH"] = "1"  # the kernel's progress bars as text, which papermill hands on
    try:
        papermill.execute_notebook(
            source, executed, parameters, kernel_name="python3", progress_bar=True, stderr_file=sys.stderr
        )
        book = nbformat.read(executed, as_version=4)
        # A page needs no live progress bars, nor the scripts that a browser would fetch for them.
        book.metadata.pop("widgets", None)
        exporter = nbconvert.HTMLExporter(template_name="lab")
        page, _ = exporter.from_notebook_node(book)
        whole = Path(html).with_suffix(".part")  # renamed when it is whole
        whole.write_text(page)
        whole.replace(html)
    except PapermillExecutionError as error:
        sys.exit(f"{source}: {error.evalue or error.ename} (the notebook as far as it ran: {executed})")
    except DeadKernelError:
        sys.exit(
            f"{source}: its kernel died, killed from outside or for want of memory; run again to go on from the last "
            f"checkpoint, with a smaller batch, together or samples if memory was short (as far as it ran: {executed})"
        )
    except OSError as error:
        sys.exit(f"{source}: {executed.parent} cannot be written ({error.strerror or error}); make room and run again.")
    executed.unlink()


run(snakemake.input.notebook, dict(snakemake.params.values), snakemake.output.html)  # noqa: F821
