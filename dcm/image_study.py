"""The image studies: a UNet teacher, students that start as its copies, quality by features of a classifier."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcm import data as sources
from dcm.artifacts import fingerprint, project_path, read_json, write_json
from dcm.consistency import ConsistencyFunction
from dcm.errors import InputError, TrainingError, last_good
from dcm.progress import tqdm
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students import ModuleStudents, Students
from dcm.studies import Study

SHIPPED = Path(__file__).resolve().parents[1] / "weights"
HELD_OUT = 5000  # images of a folder that are kept from training, for metrics
REFERENCE_INTERVALS = 200  # of the fine grid that stands in for the true ODE solution


class VelocityNetwork(nn.Module):
    """A student: the teacher's architecture, called as ``network(x, t, condition)``; predicts v.

    With :meth:`adapt` it trains a LoRA adapter alone, as the paper's students do.
    """

    def __init__(self, config):
        super().__init__()
        from dcm.teachers.unet import build_unet

        self.unet = build_unet(config)
        self.autocast = False

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """v (B, C, H, W)."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return self.unet(x, t, class_labels=condition, return_dict=False)[0].to(x.dtype)

    def adapt(self, rank: int) -> None:
        """Freeze the network under a LoRA adapter (Hu et al. 2021) of this rank and alpha, on the paper's layers.

        The adapter starts at zero. Its first factor is drawn by peft from torch's global generator.
        Raises :class:`InputError` where peft is not installed.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise InputError(
                f"lora_rank = {rank} needs the package peft, which is not installed; allowed here: 0."
            ) from None
        from dcm.lora import TARGETS

        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), self.unet)

    def start_as(self, teacher: nn.Module) -> None:
        """Take over the weights of the teacher's UNet; an adapter over them stays."""
        own = {
            name.replace(".base_layer.", "."): p for name, p in self.unet.state_dict().items() if "lora_" not in name
        }
        for name, value in teacher.state_dict().items():
            own[name].copy_(value)


class ImageStudy(Study):
    """A study on images, with whatever notebook 1 left in ``run_dir/teacher``.

    Raises :class:`InputError` when notebook 1 has not run, or its data are no longer there.
    """

    def __init__(self, name: str, run_dir: Path, device: torch.device):
        from dcm.features import Classifier, EfficientNetFeatures, InceptionFeatures
        from dcm.image_quality import ImageQuality
        from dcm.teachers.unet import UNetTeacher

        folder = Path(run_dir) / "teacher"
        if not (folder / "teacher.json").exists():
            raise InputError(f"{folder} holds no teacher of the study {name}; run notebook 1 with this run_dir first.")
        about = read_json(folder / "teacher.json")
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
        real = data.images("held_out")[0] if len(data.held_out) else None
        super().__init__(
            name, teacher, data, ImageQuality(extractor, classifier, real, inception), ConsistencyFunction(teacher.schedule),
            chunk=1024 if device.type == "cuda" else 256, exact=False, teacher_id=fingerprint(folder / "config.json"),
        )  # fmt: skip

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Networks of the teacher's architecture with random weights; `width` is the teacher's and not used.

        With a `lora_rank` above 0 they are frozen, and adapters of that rank are what trains.
        """
        networks = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                networks.append(VelocityNetwork(self.teacher.config))
                if lora_rank:
                    networks[-1].adapt(lora_rank)
        for network in networks:
            network.autocast = self.teacher.autocast
            if self.teacher.autocast:  # as the teacher's: what bfloat16 convolutions want
                network.unet.to(memory_format=torch.channels_last)
        return ModuleStudents(networks)

    def before_training(self, students: ModuleStudents, parameters, team) -> None:
        """Compile the students where `parameters` ask for it and there is a GPU."""
        if parameters.compiled and next(students.parameters()).is_cuda:
            for network in students.networks:
                network.unet.compile(dynamic=False)

    def start_from_teacher(self, students: ModuleStudents, seeds: Sequence[int], updates: int) -> None:
        """Copy the teacher's weights (`updates` above 0), as the paper does; 0 leaves random ones."""
        if updates:
            for network in students.networks:
                network.start_as(self.teacher.unet)

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """DDIM on a finer grid; see :func:`fine_reference`."""
        return fine_reference(self, x, n, condition, guidance, grid)


def fine_reference(study: Study, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
    """DDIM on the coarsest grid that has at least 200 intervals and every time of `grid`; see :meth:`Study.reference`."""
    T = study.teacher.schedule.T
    fine = next(N for N in range(grid.intervals, T + 1, grid.intervals) if N >= REFERENCE_INTERVALS and T % N == 0)
    start = n * fine // grid.intervals
    parts = zip(x.split(study.chunk), condition.split(study.chunk))
    return torch.cat([solve(study.teacher, a, start, c, guidance, "ddim", Grid(fine, T)).x for a, c in parts])


def load_images(about: dict, teacher=None) -> sources.ImageSet:
    """The images that notebook 1 was told of; `teacher` makes them where the source is ``teacher``."""
    if about["source"] == "builtin":
        return sources.digits()
    if about["source"] == "cifar10":
        return sources.cifar10(project_path(about["folder"]), about["download"])
    if about["source"] == "folder":
        return sources.image_folder(project_path(about["folder"]), held_out=HELD_OUT, flip=True)
    if teacher is None:
        raise InputError(
            "data = 'teacher' needs a trained teacher; allowed with updates = 0, or name images to train on."
        )
    return sources.teacher_samples(teacher, about["count"])


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work for an image study: train or fetch the teacher, train the classifier, note the data.

    Parameters
    ----------
    p : :class:`dcm.parameters.TeacherParameters`. run_dir : a folder.

    An interrupted training goes on from its checkpoint; a finished one is not repeated for the same parameters.
    Raises :class:`InputError`.
    """
    from dcm.features import train_classifier
    from dcm.teacher_training import TeacherTraining, train_teacher
    from dcm.teachers.unet import UNetConfig, UNetTeacher

    folder = run_dir / "teacher"
    about = {
        "source": p.data,
        "folder": p.data_dir,
        "download": p.download,
        "count": p.teacher_images,
        "inception": p.inception,
    }
    identity = {"parameters": p.model_dump(include={"study", "seed", "updates", "batch", "lr", "data"})}
    done = folder / "teacher.json"
    if done.exists() and read_json(done)["identity"] == identity:
        write_json(done, {"identity": identity, "data": about})
        return
    done.unlink(missing_ok=True)
    shipped = SHIPPED / f"{p.study}_teacher"
    if p.updates == 0 and p.study == "cifar10":
        if not (shipped / "weights.safetensors").exists():
            raise InputError(f"no trained teacher is shipped in {shipped}; set updates above 0 to train one.")
        UNetTeacher.load(shipped)  # verifies the SHA-256 before anything is copied
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "weights.safetensors"):
            shutil.copyfile(shipped / name, folder / name)
        images = load_images(about, UNetTeacher.load(folder).to(device)).to(device)
    else:
        images = load_images(about).to(device)
        config = {
            "digits": UNetConfig(8, 1, images.num_classes, **DIGITS_NETWORK),
            "cifar10": UNetConfig(32, 3, images.num_classes, **CIFAR_NETWORK),
        }[p.study]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(p.seed)
            teacher = UNetTeacher(config).to(device)
        if device.type == "cuda":
            teacher.accelerate()
        updates = p.updates or DIGITS_UPDATES
        ema = min(0.9995, max(0.0, 1 - 10 / updates))
        settings = TeacherTraining(
            updates, batch=p.batch, learning_rate=p.lr, warmup=min(100, updates // 10), ema=ema, seed=p.seed
        )
        train(train_teacher(teacher, images, settings, folder / "checkpoint.safetensors"), settings.updates, folder)
    train_classifier(images, **CLASSIFIERS[p.study]).save(folder / "classifier.safetensors")
    write_json(done, {"identity": identity, "data": about})


def train(states, updates: int, folder: Path, every: float = 60.0) -> None:
    """Drive a teacher's training with a progress bar and checkpoints, and save the averaged weights."""
    bar, last = tqdm(total=updates, desc="train the teacher", unit="update"), time.monotonic()
    saved = 0
    try:
        for state in states:
            bar.update(state.step - bar.n)
            if time.monotonic() - last > every:
                state.save(folder / "checkpoint.safetensors")
                saved, last = state.step, time.monotonic()
    except TrainingError as error:
        raise TrainingError(f"{error} {last_good(folder / 'checkpoint.safetensors', saved)}") from None
    bar.close()
    state.ema.save(folder, {"updates": state.step, "seconds": round(state.elapsed, 1)})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


# Small enough that the whole digits study runs on two CPU cores in minutes.
DIGITS_NETWORK: dict[str, Any] = dict(widths=(16, 32), attention=(False, False), layers=1, head_width=16, groups=16)
DIGITS_UPDATES = 1500
CLASSIFIERS = {"digits": dict(updates=400, batch=64), "cifar10": dict(updates=4000, batch=256, width=64)}
CIFAR_NETWORK: dict[str, Any] = dict(
    widths=(96, 112, 96), attention=(False, True, True), layers=2, head_width=16, groups=16
)
