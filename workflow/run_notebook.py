"""Run one notebook through papermill, a rule's or one named by hand; bad input ends in one sentence.

python workflow/run_notebook.py notebooks/2_distill.ipynb out.ipynb -p updates 100 -p guidance "[1.0, 2.0]"
"""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import kernels
import papermill
import yaml
from jupyter_client import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from dcm.support import lock  # and nothing that takes a kernel's time and memory to import

KEPT = {".csv", ".json", ".md", ".png", ".pdf", ".safetensors"}
LONGEST = 60  # letters of a folder in which sockets can be made: a path of theirs has at most 107


class Kernels(AsyncKernelManager):
    """Kernels of the study's server, where there is one: workflow/kernels.py."""

    def format_kernel_cmd(self, extra_arguments=None):
        """The command that a kernel is started with."""
        command = super().format_kernel_cmd(extra_arguments)
        return [sys.executable, kernels.__file__, *command[command.index("-f") :]] if kernels.SERVER in os.environ else command


def execute(source: str, executed: Path, parameters: dict) -> None:
    """The notebook `source` with `parameters`, kept as `executed` cell by cell."""
    executed.parent.mkdir(parents=True, exist_ok=True)
    executed.unlink(missing_ok=True)  # a link of this name would lead elsewhere
    with tempfile.TemporaryDirectory(prefix="dcm-", ignore_cleanup_errors=True) as sockets:
        # Sockets that are files: nothing of the kernel can be reached over the network.
        settings = {"transport": "ipc", "ip": f"{sockets}/kernel"} if len(sockets) <= LONGEST else {}
        # A kernel that is asked to stop logs an error; all that it made is kept by now.
        papermill.execute_notebook(
            source, executed, parameters, kernel_name="python3", progress_bar=False, stderr_file=sys.stderr,
            config=Config({"KernelManager": settings}), kernel_manager_class=Kernels, shutdown_kernel="immediate",
        )  # fmt: skip


def run_or_exit(source: str, executed: Path, parameters: dict) -> None:
    """:func:`execute`; on failure leave the half-run notebook and exit with one sentence."""
    try:
        execute(source, executed, parameters)
    except PapermillExecutionError as error:
        sys.exit(f"{source}: {error.evalue or error.ename} (the notebook as far as it ran: {executed})")
    except RuntimeError as error:  # DeadKernelError is one
        if "ernel d" not in str(error):  # "Kernel died", "Kernel didn't respond"
            raise
        sys.exit(
            f"{source}: its kernel died, killed from outside or for want of memory; run again to go on from the last "
            "checkpoint, with a smaller batch, updates_per_solve or samples if memory was short (as far as it ran: "
            f"{executed})"
        )
    except OSError as error:
        sys.exit(f"{source}: {executed.parent} cannot be written ({error.strerror or error}); make room and run again.")


def note(run: Path, executed: Path, outputs: list[str], beside: list[Path]) -> None:
    """Keep checksums of a rule's `outputs`, and of files that it wrote `beside` them, for workflow/study.py."""
    found = [p for b in beside for p in (sorted(b.glob("*.*")) if b.is_dir() else [b])]
    marks = {}
    for path in [*map(Path, outputs), *(p for p in found if p.suffix in KEPT and p.is_file())]:
        with open(path, "rb") as file:  # tensors have a checksum of their own, of what counts in them
            mark = None if path.suffix == ".safetensors" else hashlib.file_digest(file, "sha256").hexdigest()
        marks[os.path.relpath(path, run)] = mark
    (run / "checksums").mkdir(exist_ok=True)
    part = run / f"checksums/.{executed.stem}.{os.getpid()}"
    part.write_text(json.dumps({"outputs": list(outputs), "files": marks}, indent=1))
    part.replace(run / f"checksums/{executed.stem}.json")


def end_when_free(file: int) -> None:
    """End this process, and with it the kernel, once a lock can be had."""
    fcntl.flock(file, fcntl.LOCK_SH)
    os._exit(1)


def end_with_the_study() -> None:
    """End this process when the study that started it ends, even by a kill: nothing goes on in a folder that is free."""
    for folder in lock.held():
        file = os.open(Path(folder) / ".lock", os.O_RDONLY)
        if lock.locked(file, fcntl.LOCK_SH):  # a study of another machine
            os.close(file)
        else:
            threading.Thread(target=end_when_free, args=(file,), daemon=True).start()


def run_rule(rule) -> None:
    """What a rule of Snakemake asks for."""
    end_with_the_study()
    source, values = rule.input.notebook, dict(rule.params.values)
    run, name = Path(values["run_dir"]), "-".join([Path(source).stem, *filter(None, [values.get("group_name")])])
    executed = run / f"notebooks/{name}.ipynb"  # no output of the rule: where one failed it stays
    for variable, value in kernels.KEEP_MEMORY.items():
        os.environ.setdefault(variable, value)
    os.environ["DCM_BATCH"] = "1"
    start = time.time()
    sys.stderr.write(f"{run.name} {name} ..\n")  # in one piece: another notebook's line may come at the same moment
    run_or_exit(source, executed, values)
    made = run / "teacher" if name == "1_teacher" else Path(values.get("results_dir", "nowhere"))
    note(run, executed, rule.output, [made, run / "provenance" / f"{name}.json"])
    sys.stderr.write(f"{run.name} {name} done in {time.time() - start:.0f} s\n")


def value(text: str):
    """A parameter from the command line: a number, a list, true or false, else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def run_by_hand() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebook", help="notebooks/2_distill.ipynb, say")
    parser.add_argument("executed", type=Path, help="where it is kept, executed")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    parser.add_argument("-y", default="{}", metavar="YAML", help="more of them: 'horizons: [cm, 5, direct]', say")
    asked = parser.parse_args()
    if not isinstance(more := yaml.safe_load(asked.y), dict):
        parser.error("-y takes names and values: 'horizons: [cm, 5, direct]', say")
    run_or_exit(asked.notebook, asked.executed, more | {name: value(text) for name, text in asked.p})


if "snakemake" in globals():
    run_rule(snakemake)  # noqa: F821
elif __name__ == "__main__":
    run_by_hand()
