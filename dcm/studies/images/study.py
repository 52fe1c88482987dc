"""The image studies: a UNet teacher, students that start as its copies, quality by features of a classifier."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dcm.consistency import ConsistencyFunction
from dcm.data import images as image_data
from dcm.metrics.encoders import EfficientNetFeatures, InceptionFeatures
from dcm.metrics.features import Classifier, SelfSupervised
from dcm.metrics.images import ImageQuality
from dcm.students.lockstep import ModuleStudents, Students
from dcm.students.networks import VelocityNetwork
from dcm.studies.base import Study, teacher_record
from dcm.support.errors import InputError
from dcm.support.files import ROOT, fingerprint, project_path
from dcm.teachers.unet import UNetTeacher

SHIPPED = ROOT / "weights"
HELD_OUT = 5000  # images of a folder that are kept from training, for metrics


class ImageStudy(Study):
    """A study on images, with what notebook 1 left in ``run_dir/teacher``; raises :class:`InputError` where it is gone."""

    def __init__(self, name: str, run_dir: Path, device: torch.device):
        about: Any = teacher_record(run_dir, needed_by=name)
        folder = run_dir / "teacher"
        self_supervised = load_encoder(name).to(device)
        teacher = UNetTeacher.load(folder).to(device)
        if device.type == "cuda":
            teacher.accelerate(compile=False).freeze()
        data = load_images(about["data"], teacher).to(device)
        classifier = Classifier.load(folder / "classifier.safetensors").to(device)
        extractor = classifier if name == "digits" else EfficientNetFeatures(device)
        inception = None
        if name == "cifar10" and about["data"]["inception"] != "off":
            try:
                inception = InceptionFeatures(device, download=about["data"]["inception"] == "download")
            except InputError as missing:
                print(f"FID and KID are not measured: {missing}")
        quality = ImageQuality(extractor, classifier, data.images("held_out")[0], self_supervised, inception)
        super().__init__(
            name, teacher, data, quality, ConsistencyFunction(teacher.schedule),
            chunk=1024 if device.type == "cuda" else 256, exact=False, teacher_id=fingerprint(folder / "config.json"),
        )  # fmt: skip

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Networks like the teacher's with random weights; with a `lora_rank` frozen under adapters. `width` is not used."""
        networks = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = VelocityNetwork(self.teacher.config)
                if lora_rank:
                    network.adapt(lora_rank)
            network.autocast = self.teacher.autocast
            if network.autocast:  # as the teacher's: what bfloat16 convolutions want
                network.unet.to(memory_format=torch.channels_last)
            networks.append(network)
        return ModuleStudents(networks)

    def before_training(self, students: ModuleStudents, parameters, processes) -> None:
        """Compile the students where `parameters` ask for it and there is a GPU."""
        if parameters.compiled and next(students.parameters()).is_cuda:
            for network in students.networks:
                network.compiled = True

    def start_from_teacher(self, students: ModuleStudents, seeds: Sequence[int], updates: int) -> None:
        """Copy the teacher's weights (`updates` above 0), as the paper does; 0 leaves random ones."""
        if updates:
            for network in students.networks:
                network.start_as(self.teacher.unet)


def load_encoder(study: str) -> SelfSupervised:
    """The self-supervised encoder that the repository ships; raises :class:`InputError` for none or an altered one."""
    return SelfSupervised.load(SHIPPED / f"{study}_encoder")


def load_images(about: dict, teacher=None) -> image_data.ImageSet:
    """The images that notebook 1 was told of; a trained `teacher` makes them where the source is ``teacher``."""
    if about["source"] == "builtin":
        return image_data.digits()
    if about["source"] == "cifar10":
        return image_data.cifar10(project_path(about["folder"]), about["download"])
    if about["source"] == "folder":
        return image_data.image_folder(project_path(about["folder"]), held_out=HELD_OUT, flip=True)
    return image_data.teacher_samples(teacher, about["count"])
