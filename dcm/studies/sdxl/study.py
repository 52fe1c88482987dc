"""The paper's own setting: SDXL as teacher, LoRA adapters of its UNet as students."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.data.captions import CachedLatents
from dcm.horizon import method_name
from dcm.metrics.captioned import SDXLQuality
from dcm.metrics.encoders import Encoders
from dcm.schedule import NoiseSchedule
from dcm.students.lockstep import Students
from dcm.students.lora import LoRAStudents
from dcm.studies.base import Study, teacher_record
from dcm.studies.sdxl import memory
from dcm.studies.sdxl.pipeline import PRECISIONS, load_vae
from dcm.support.errors import InputError
from dcm.support.files import fingerprint
from dcm.support.pretrained import loading, readable_model
from dcm.support.processes import Processes
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher


class SDXLStudy(Study):
    """SDXL with what notebook 1 left in ``run_dir/teacher``; raises :class:`InputError` where it or the pipeline is gone."""

    costly = True

    def __init__(self, name: str, run_dir: Path, device: torch.device):
        from diffusers import DDPMScheduler, UNet2DConditionModel

        about: Any = teacher_record(run_dir, needed_by=name)
        folder, dtype = Path(about["folder"]), PRECISIONS[about["precision"]]
        if not (folder / "unet").is_dir():
            raise InputError(f"the pipeline is no longer in {folder}; put it back, or run notebook 1 again.")
        with readable_model(folder):
            options = loading(folder / "unet", dtype, low=dtype != torch.float32)
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options).to(device)
            schedule = NoiseSchedule.from_betas(DDPMScheduler.from_pretrained(folder, subfolder="scheduler").betas)
        self.run_dir, self.vae = run_dir, load_vae(about, device)
        data = CachedLatents.load(run_dir / "teacher" / "cache", about["count"])
        self.network = PromptedUNet(unet, data.prompts, about["batch"])
        teacher = SDXLTeacher(self.network, schedule, tuple(data.latents.shape[1:]))
        f = ConsistencyFunction(schedule, prediction="epsilon", least_alpha=0)  # the paper's
        quality = SDXLQuality(self.pictures, about["captions"], lambda: Encoders(about, device))
        mark = fingerprint(about["identity"])
        super().__init__(name, teacher, data, quality, f, chunk=about["batch"], exact=False, teacher_id=mark)

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Fresh adapters of rank and alpha `width`; they start as the teacher. `lora_rank` is of no use here."""
        return LoRAStudents(self.network, seeds, width)

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) decoded to images (B, 3, H, W) in [-1, 1], on the autoencoder's device."""
        z = x.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(one[None], return_dict=False)[0] for one in z]).float().clamp(-1, 1)

    def before_training(self, students: Students, parameters, processes: Processes) -> None:
        """Gradient checkpointing and microbatch as asked for; on a GPU, refuse what its memory does not hold."""
        ready_network(students, parameters)
        device = self.network.device
        if device.type == "cpu" and self.teacher.shape[-1] > 64:
            where = "benchmarks/sdxl_dry_run.py on one says what it costs"
            raise InputError(f"SDXL at its own size needs a GPU, and none is present; {where}.")
        if device.type == "cuda":
            own = processes.rows(parameters.batch)
            need = memory.needed(students, self.teacher.shape, own.stop - own.start, parameters)
            memory.check(need, memory.available(device), parameters)

    def to(self, device: torch.device) -> None:
        """Move the UNet and the autoencoder."""
        self.teacher.forget()
        self.network.unet.to(device)
        self.vae.to(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def export(self, distilled, device: torch.device) -> None:
        """Write each student to ``run_dir/adapters/<group>/<student>`` in diffusers' LoRA format."""
        students = distilled.students(self, distilled.updates[-1], device)
        for m, member in enumerate(distilled.group.members):
            called = method_name(member.horizon, distilled.group.intervals)
            horizon = {"CM": "cm", "Direct CM": "direct"}.get(called, re.sub(r"\W+", "-", called.replace(" = ", "")))
            name = f"{horizon}-w{member.guidance:g}-seed{member.seed}"
            students.save(m, self.run_dir / "adapters" / distilled.name / name)


def ready_network(students, parameters) -> None:
    """Set what trades memory for time, as `parameters` ask."""
    unet = students.network.unet
    unet.enable_gradient_checkpointing() if parameters.gradient_checkpointing else unet.disable_gradient_checkpointing()
    students.microbatch = parameters.microbatch
