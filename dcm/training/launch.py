"""Work in several processes of this machine: training, above all."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, SampleQualityParameters
from dcm.studies.base import Study
from dcm.studies.registry import load_study
from dcm.support.errors import InputError
from dcm.support.files import ROOT
from dcm.support.processes import Processes, check_shareable, find_device, ready_device
from dcm.training.run import finished, train_group
from dcm.training.saved import DistilledGroup, load_group


def distil_group(study: Study, p: DistillParameters, device: torch.device) -> DistilledGroup:
    """:func:`~dcm.training.run.train_group`, in ``p.processes`` processes."""
    if p.processes == 1 or finished(p, study):
        return train_group(study, p, device)
    study.to(torch.device("cpu"))  # the processes need the memory
    launch(p)
    study.to(device)
    return load_group(p.run_dir, p.group_name)


def launch(p: DistillParameters | SampleQualityParameters, module: str = "dcm.training.launch", *words: str) -> None:
    """Run a `module` that calls :func:`joined` in ``p.processes`` processes of this machine; returns when they have ended.

    `words` : further arguments of the module. Raises :class:`InputError` for more processes than GPUs or an uneven batch,
    before anything starts, and with the processes' own sentence when they stop early.
    """
    if isinstance(p, DistillParameters):
        check_shareable(p.batch, p.processes)
    gpus = 0 if p.device == "cpu" else torch.cuda.device_count()
    if gpus and p.processes > gpus:
        raise InputError(f"processes = {p.processes} is not possible; allowed: 1 to {gpus}, one a GPU.")
    # torchrun, since accelerate's own launcher starts one process only where there is no GPU; accelerate joins either.
    command, said = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(p.processes)], ""
    environment = {"OMP_NUM_THREADS": "1"} | os.environ  # torchrun's own choice, which it would tell of at length
    with TemporaryDirectory() as folder:
        path = Path(folder) / "parameters.json"
        path.write_text(p.model_dump_json())
        command += ["-m", module, str(path), *words]
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():  # a notebook shows what this process prints, not what its children do
                print(line, end="", flush=True)
                said = line.split("InputError: ")[1].strip() if "InputError: " in line else said
    if process.returncode:
        raise InputError(said or f"{module} in {p.processes} processes stopped; its last words are above.")


def joined(path: str, work: Callable[[Study, Any, torch.device, Processes], object], model: type = DistillParameters) -> None:
    """What each process does, of :func:`launch` (``torchrun -m MODULE PARAMETERS.json``) or of ``accelerate launch``.

    `work` takes the study, the parameters of a `model`, the device and the processes.
    """
    from accelerate import Accelerator

    p: Any = validate(model, json.loads(Path(path).read_text()))
    accelerator = Accelerator(cpu=find_device(p.device).type == "cpu")
    ready_device(accelerator.device, p.threads)
    try:
        work(load_study(p.study, p.run_dir, accelerator.device), p, accelerator.device, Processes(accelerator))
    except InputError as error:
        sys.exit(f"InputError: {error}")
    finally:
        accelerator.end_training()


if __name__ == "__main__":
    joined(sys.argv[1], train_group)
