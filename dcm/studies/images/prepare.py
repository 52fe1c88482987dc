"""Notebook 1's work for an image study."""

import shutil
from pathlib import Path
from typing import Any

import torch

from dcm.data.images import ImageSet
from dcm.metrics.features import train_classifier
from dcm.schedule import Grid
from dcm.studies.images.study import SHIPPED, kind_of, load_encoder, load_images
from dcm.support.files import read_json, verify, write_json
from dcm.support.pretrained import locate
from dcm.support.progress import tqdm
from dcm.teachers.pipeline import read_pipeline
from dcm.teachers.unet import UNetConfig, UNetTeacher
from dcm.teachers.unet_training import TeacherTraining, train_teacher

# Small enough that the whole digits study runs on two CPU cores in minutes.
DIGITS_NETWORK: dict[str, Any] = dict(widths=(16, 32), attention=(False, False), layers=1, head_width=16, groups=16)
CIFAR_NETWORK: dict[str, Any] = dict(widths=(96, 112, 96), attention=(False, True, True), layers=2, head_width=16, groups=16)
OF_TRAINING = {"study", "seed", "updates", "batch", "lr", "data"}  # parameters that the teacher depends on
OF_PIPELINE = {"study", "model", "null_class", "data"}
CLASSIFIERS = {"digits": dict(updates=400, batch=64), "cifar10": dict(updates=4000, batch=256, width=64)}


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Train or fetch the teacher, train or fetch the classifier, note the data. `p` : notebook 1's parameters.

    An interrupted training goes on from its checkpoint; a finished one is not repeated for the same parameters.
    Raises :class:`InputError`.
    """
    if kind := kind_of(p.study, p.data):
        load_encoder(kind)  # what measures later must be there before hours of work
    folder, done = run_dir / "teacher", run_dir / "teacher" / "teacher.json"
    identity = {"parameters": p.model_dump(include=OF_PIPELINE if p.study == "diffusers" else OF_TRAINING)}
    about = {"source": p.data, "folder": p.data_dir, "download": p.download, "count": p.teacher_images,
             "inception": p.inception}  # fmt: skip
    if p.study == "diffusers":  # read anew each time: what is in the folder may have changed
        take_pipeline(p, folder, about)
    elif not (done.exists() and read_json(done).get("identity") == identity):
        done.unlink(missing_ok=True)
        if p.updates == 0:  # the one that the repository ships
            shipped = SHIPPED / f"{p.study}_teacher"
            images = load_images(about, UNetTeacher.load(shipped).to(device), folder).to(device)
            shutil.copytree(shipped, folder, dirs_exist_ok=True)
        else:
            images = make_teacher(p, folder, about, device)
        make_classifier(p.study, images, folder / "classifier.safetensors")
    write_json(done, {"study": p.study, "identity": identity, "data": about})


def take_pipeline(p, folder: Path, about: dict) -> None:
    """Copy the teacher of a diffusers pipeline into `folder`, when it suits the parameters and the images."""
    teacher = read_pipeline(locate(p.model, "model", p.download, pipeline=True, low=False), p.null_class)
    for intervals in (*p.intervals, 50):  # 50 are in notebook 1's figure
        Grid(intervals, teacher.schedule.T)
    if about["source"] != "teacher":
        load_images(about, teacher)
    teacher.save(folder, {"model": p.model})


def make_teacher(p, folder: Path, about: dict, device: torch.device) -> ImageSet:
    """Train the teacher, with checkpoints, and save its averaged weights in `folder`; returns the images."""
    images = load_images(about).to(device)
    network = {"digits": DIGITS_NETWORK, "cifar10": CIFAR_NETWORK}[p.study]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        teacher = UNetTeacher(UNetConfig(images.shape[-1], images.shape[0], images.num_classes, **network)).to(device)
    if device.type == "cuda":
        teacher.accelerate()
    warmup, ema = min(100, p.updates // 10), min(0.9995, max(0.0, 1 - 10 / p.updates))
    settings = TeacherTraining(p.updates, batch=p.batch, learning_rate=p.lr, warmup=warmup, ema=ema, seed=p.seed)
    checkpoint, bar = folder / "checkpoint.safetensors", tqdm(total=p.updates, desc="train the teacher", unit="update")
    for state in train_teacher(teacher, images, settings, checkpoint):
        bar.update(state.step - bar.n)
    bar.close()
    state.ema.save(folder, {"updates": state.step, "seconds": round(state.elapsed, 1)})
    checkpoint.unlink(missing_ok=True)
    return images


def make_classifier(study: str, images: ImageSet, path: Path) -> None:
    """Copy the classifier that the repository ships, so that every machine measures by the same; else train one."""
    shipped = SHIPPED / f"{study}_classifier"
    record = read_json(shipped / "config.json") if shipped.exists() else {}
    if record.get("settings") == CLASSIFIERS[study]:
        verify(shipped / "weights.safetensors", record["sha256"])
        shutil.copyfile(shipped / "weights.safetensors", path)
    else:
        train_classifier(images, **CLASSIFIERS[study]).save(path)
