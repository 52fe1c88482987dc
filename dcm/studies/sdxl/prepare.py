"""Notebook 1's work for SDXL."""

from __future__ import annotations

from pathlib import Path

import torch

from dcm.data.captions import cache, captioned_images
from dcm.studies.sdxl.pipeline import OWN_VAE, check_pipeline, make_encoder
from dcm.support.files import project_path, write_json
from dcm.support.pretrained import check_packages, locate

IDENTITY = ("seed", "vae", "resolution", "flip", "precision")  # what the encoded data depend on


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work for sdxl: check the pipeline and the captions, encode them once, note it in teacher.json.

    An interrupted run goes on after the last whole file. Raises :class:`InputError`.
    """
    check_packages()
    items = captioned_images(project_path(p.data_dir))
    folder = locate(p.model, "model", p.download, pipeline=True, low=p.precision != "fp32")
    if p.vae != OWN_VAE:
        locate(p.vae, "vae", p.download)
    identity = p.model_dump(include={"study", *IDENTITY})
    about = p.model_dump(include={*IDENTITY, "batch", "download", "inception", "clip", "dino", "aesthetic"})
    done, weights = run_dir / "teacher" / "teacher.json", check_pipeline(folder)
    about |= {"folder": str(folder), "identity": identity | {"unet": weights}, "captions": [c for _, c in items]}
    cache(items, lambda: make_encoder(about, device), about["identity"], run_dir / "teacher" / "cache")
    write_json(done, {"study": p.study} | about | {"count": len(items)})
