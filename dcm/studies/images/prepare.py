"""Notebook 1's work for an image study."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from dcm.studies.images.study import load_images
from dcm.support.errors import InputError, TrainingError, last_good
from dcm.support.files import ROOT, read_json, write_json
from dcm.support.progress import tqdm

SHIPPED = ROOT / "weights"


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work for an image study: train or fetch the teacher, train the classifier, note the data.

    Parameters
    ----------
    p : :class:`dcm.parameters.notebooks.TeacherParameters`. run_dir : a folder.

    An interrupted training goes on from its checkpoint; a finished one is not repeated for the same parameters.
    Raises :class:`InputError`.
    """
    from dcm.metrics.features import train_classifier
    from dcm.teachers.unet import UNetConfig, UNetTeacher
    from dcm.teachers.unet_training import TeacherTraining, train_teacher

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
