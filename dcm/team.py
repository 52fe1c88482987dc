"""Several GPUs: the processes of one run, through accelerate.

Every process draws the whole batch (draws depend on seed and update alone), works on its own rows and averages
gradients with the others; so the result is that of one process, up to the rounding of sums.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from dcm.artifacts import ROOT, write_text
from dcm.errors import InputError


class Team:
    """The processes that share a run; without an `accelerator`, one process alone.

    ``rank``, ``size`` : this process's number, and how many there are. ``first`` : whether it writes files.
    """

    def __init__(self, accelerator=None):
        self.accelerator = accelerator
        self.rank, self.size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
        self.first = self.rank == 0

    def rows(self, batch: int) -> slice:
        """Rows of a batch that are this process's. Raises :class:`InputError` when the batch cannot be shared evenly."""
        _check_shareable(batch, self.size)
        own = batch // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in place and in one message."""
        if self.size > 1:
            each = list(tensors)
            mean = self.accelerator.reduce(torch.cat([t.flatten() for t in each]), "mean")
            for tensor, part in zip(each, mean.split([t.numel() for t in each])):
                tensor.copy_(part.view_as(tensor))

    def total(self, count: int) -> int:
        """Sum of a count over the processes."""
        if self.size == 1:
            return count
        return int(self.accelerator.reduce(torch.tensor([count], device=self.accelerator.device), "sum").item())

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            self.accelerator.wait_for_everyone()


def _check_shareable(batch: int, processes: int) -> None:
    if batch % processes:
        raise InputError(
            f"batch = {batch} cannot be shared by {processes} processes; allowed: multiples of {processes}."
        )


ALONE = Team()


def launch(parameters) -> None:
    """Distil a group in ``parameters.processes`` processes of this machine; returns when its students are written.

    Parameters
    ----------
    parameters : :class:`dcm.parameters.DistillParameters`.

    Raises :class:`InputError` for more processes than GPUs or an uneven batch, before anything starts, and with the
    processes' own sentence when they stop early.
    """
    _check_shareable(parameters.batch, parameters.processes)
    on_cpu = parameters.device == "cpu" or not torch.cuda.is_available()
    if not on_cpu and parameters.processes > torch.cuda.device_count():
        raise InputError(
            f"processes = {parameters.processes} is not possible; allowed: 1 to {torch.cuda.device_count()}, one a GPU."
        )
    path = Path(parameters.run_dir) / "checkpoints" / f"{parameters.group_name}.json"
    write_text(path, parameters.model_dump_json())
    # torchrun, since accelerate's own launcher starts one process only where there is no GPU; accelerate joins either.
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(parameters.processes),
        "-m", "dcm.team", str(path),
    ]  # fmt: skip
    said = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():  # a notebook shows what this process prints, not what its children do
            print(line, end="", flush=True)
            said = line.split("InputError: ")[1].strip() if "InputError: " in line else said
    if process.returncode:
        raise InputError(said or f"training in {parameters.processes} processes stopped; its last words are above.")
    path.unlink()


def main(path: str) -> None:
    """What each process of :func:`launch` does: ``torchrun -m dcm.team PARAMETERS.json``, or ``accelerate launch``."""
    import json

    from accelerate import Accelerator

    from dcm.parameters import DistillParameters, validate
    from dcm.studies import load_study, ready_device
    from dcm.training import train_group

    p = validate(DistillParameters, json.loads(Path(path).read_text()))
    accelerator = Accelerator(cpu=p.device == "cpu")
    ready_device(accelerator.device, p.threads)
    try:
        study = load_study(p.study, p.run_dir, accelerator.device)
        train_group(study, p, accelerator.device, Team(accelerator))
    except InputError as error:
        sys.exit(f"InputError: {error}")
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
