"""The image studies: a UNet teacher, students that start as its copies, quality by features of encoders."""

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
from dcm.students.networks import UNetStudent, adapt
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
        folder, kind = run_dir / "teacher", kind_of(name, about["data"]["source"])
        self_supervised = load_encoder(kind).to(device) if kind else None
        teacher = UNetTeacher.load(folder).to(device)
        if device.type == "cuda":
            teacher.accelerate(compile=False).freeze()
        data = load_images(about["data"], teacher, folder).to(device)
        classifier = None if name == "diffusers" else Classifier.load(folder / "classifier.safetensors").to(device)
        extractor = classifier if name == "digits" else EfficientNetFeatures(device)
        inception = None
        if name != "digits" and about["data"]["inception"] != "off":
            try:
                inception = InceptionFeatures(device, download=about["data"]["inception"] == "download")
            except InputError as missing:
                print(f"FID and KID are not measured: {missing}")
        quality = ImageQuality(extractor, classifier, data.images("held_out")[0], self_supervised, inception)
        super().__init__(
            name, teacher, data, quality, ConsistencyFunction(teacher.schedule, prediction=teacher.config.prediction),
            # On a GPU a size that 10,000 samples are a multiple of: each further one would be compiled anew.
            chunk=1000 if device.type == "cuda" else 256, exact=False, teacher_id=fingerprint(folder / "config.json"),
        )  # fmt: skip

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Networks like the teacher's with random weights; with a `lora_rank` frozen under adapters. `width` is not used."""
        networks = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                network = UNetStudent(self.teacher.config)
                if lora_rank:
                    adapt(network.unet, lora_rank)
            network.autocast = self.teacher.autocast
            if network.autocast:  # as the teacher's: what bfloat16 convolutions want
                network.unet.to(memory_format=torch.channels_last)
            networks.append(network)
        return ModuleStudents(networks)

    def before_training(self, students: ModuleStudents, parameters, processes) -> None:
        """Compile the students where `parameters` ask for it."""
        if parameters.compiled:
            self.compile_students(students)

    def compile_students(self, students: ModuleStudents) -> None:
        """The first call takes a minute, and one of another batch size another."""
        for network in students.networks:
            network.compiled = next(network.parameters()).is_cuda

    def start_from_teacher(self, students: ModuleStudents, seeds: Sequence[int], updates: int) -> None:
        """Copy the teacher's weights (`updates` above 0), as the paper does; 0 leaves random ones."""
        if updates:
            for network in students.networks:
                network.start_as(self.teacher.unet)


def load_encoder(study: str) -> SelfSupervised:
    """The self-supervised encoder that the repository ships; raises :class:`InputError` for none or an altered one."""
    return SelfSupervised.load(SHIPPED / f"{study}_encoder")


def kind_of(study: str, source: str) -> str:
    """Which study's encoders suit the images, by their `source`; empty for none, where a teacher of any images is given."""
    return study if study != "diffusers" else "cifar10" * (source == "cifar10")


def load_images(about: dict, teacher: UNetTeacher | None = None, folder: Path | None = None) -> image_data.ImageSet:
    """The images that notebook 1 was told of.

    Parameters
    ----------
    about : ``source``, and what that needs: ``folder``, ``download``, ``count``.
    teacher : whose shape and classes the images must have; it makes them where the source is ``teacher``.
    folder : where those are kept.

    Raises :class:`InputError` for images that cannot be read, or do not suit the teacher.
    """
    shape, labelled = (teacher.shape, teacher.config.labelled) if teacher else ((3, 32, 32), True)
    if about["source"] == "builtin":
        return image_data.digits()
    if about["source"] == "teacher":
        return image_data.teacher_samples(teacher, about["count"], kept=folder and folder / "samples.safetensors")
    if about["source"] == "folder":
        images = image_data.image_folder(project_path(about["folder"]), shape, HELD_OUT, flip=True, labelled=labelled)
    else:
        images = image_data.cifar10(project_path(about["folder"]), about["download"])
    if teacher and (images.shape != shape or labelled and images.num_classes != teacher.num_classes):
        has, needs = (f"{n} classes of images {' x '.join(map(str, of))}" for n, of in (
            (images.num_classes, images.shape), (teacher.num_classes if labelled else "any", shape)))  # fmt: skip
        raise InputError(f"data = {about['source']!r} has {has}, and the teacher needs {needs}; allowed: such images.")
    return images
