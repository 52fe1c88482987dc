"""The paper's own setting: SDXL as teacher, LoRA adapters of its UNet as students; and small models of its kind."""

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
from dcm.students.lockstep import ModuleStudents, Students
from dcm.students.lora import LoRAStudents
from dcm.students.networks import PromptedStudent
from dcm.studies.base import Study, teacher_record
from dcm.studies.sdxl import memory
from dcm.studies.sdxl.pipeline import JUDGES, by_rule, load_teacher, load_vae
from dcm.support.errors import InputError
from dcm.support.files import fingerprint
from dcm.support.processes import Processes

MEGAPIXEL = 2**20  # of images that are decoded together


class SDXLStudy(Study):
    """SDXL with what notebook 1 left in ``run_dir/teacher``; raises :class:`InputError` where it or the pipeline is gone."""

    costly = True

    def __init__(self, name: str, run_dir: Path, device: torch.device):
        about: Any = teacher_record(run_dir, needed_by=name)
        data = CachedLatents.load(run_dir / "teacher" / "cache", about["count"])
        teacher = load_teacher(about, data.prompts, tuple(data.latents.shape[1:]), device)
        self.run_dir, self.vae = run_dir, load_vae(about, device)
        area = MEGAPIXEL if device.type == "cuda" else MEGAPIXEL // 8  # what a CPU's cache holds
        self.network, self.at_once = teacher.network, max(1, area // about["resolution"] ** 2)
        f = ConsistencyFunction(teacher.schedule, prediction="epsilon", least_alpha=0)  # the paper's
        quality = SDXLQuality(self.pictures, about["captions"], lambda: Encoders(about, device), 16 * self.at_once)
        mark = fingerprint(about["identity"])
        self.measured_by = fingerprint({name: about[name] for name in JUDGES})
        super().__init__(name, teacher, data, quality, f, chunk=about["batch"], exact=False, teacher_id=mark)

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Students that start as the teacher: adapters of its one UNet, of rank and alpha `width`.

        Where `width` is 0 each has a UNet of its own, trained whole, or under an adapter of a `lora_rank`.
        """
        if width:
            return LoRAStudents(self.network, seeds, width)
        networks = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                networks.append(PromptedStudent(self.network, lora_rank))
        return ModuleStudents(networks)

    @torch.no_grad()
    @by_rule()
    def pictures(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) decoded to images (B, 3, H, W) in [-1, 1], on the autoencoder's device."""
        z = x.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(part, return_dict=False)[0] for part in z.split(self.at_once)]).float().clamp(-1, 1)

    def before_training(self, students: Students, parameters, processes: Processes) -> None:
        """Gradient checkpointing and microbatch as asked for; on a GPU, refuse what its memory does not hold."""
        ready_network(students, parameters)
        device = self.network.device
        if device.type == "cpu" and self.teacher.shape[-1] > 64:
            where = "benchmarks/sdxl_dry_run.py on one says what it costs"
            raise InputError(f"SDXL at its own size needs a GPU, and none is present; {where}.")
        own = isinstance(students, ModuleStudents)
        if own or parameters.solves_in_flight:  # as one CUDA graph needs it
            self.network.prompts = self.network.prompts.to(device)
        if own:
            memory.check_own(students, self.network.dtype, parameters)
        elif device.type == "cuda":
            rows = processes.rows(parameters.batch)
            need = memory.needed(students, self.teacher.shape, rows.stop - rows.start, parameters)
            memory.check(need, memory.available(device), parameters)

    def to(self, device: torch.device) -> None:
        """Move the UNet and the autoencoder."""
        self.teacher.forget()
        self.network.unet.to(device)
        self.vae.to(device)
        if device.type == "cpu" and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def export(self, distilled, device: torch.device) -> None:
        """Write each student to ``run_dir/adapters/<group>/<student>``, an adapter in diffusers' LoRA format."""
        students = distilled.students(self, distilled.updates[-1], device)
        for m, member in enumerate(distilled.group.members):
            called = method_name(member.horizon, distilled.group.intervals)
            horizon = {"CM": "cm", "Direct CM": "direct"}.get(called, re.sub(r"\W+", "-", called.replace(" = ", "")))
            name = f"{horizon}-w{member.guidance:g}-seed{member.seed}"
            folder = self.run_dir / "adapters" / distilled.name / name
            students.networks[m].save(folder) if isinstance(students, ModuleStudents) else students.save(m, folder)


def ready_network(students, parameters) -> None:
    """Set what trades memory for time, as `parameters` ask."""
    own = isinstance(students, ModuleStudents)
    for unet in [network.unet for network in (students.networks if own else [students.network])]:
        unet.enable_gradient_checkpointing() if parameters.gradient_checkpointing else unet.disable_gradient_checkpointing()
    students.microbatch = parameters.microbatch
