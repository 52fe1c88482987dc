"""The SDXL pipeline on disk: checked, its encoders loaded, and notebook 1's work with them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from dcm.data.captions import Encoder, cache, captioned_images
from dcm.support.errors import InputError
from dcm.support.files import project_path, sha256, write_json
from dcm.support.pretrained import check_packages, locate, readable_model, variant

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OWN_VAE = "of the model"
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
    identity = p.model_dump(include={"study", *IDENTITY}) | {"unet": check_pipeline(folder)}
    about = p.model_dump(include={"study", *IDENTITY, "batch", "download", "inception", "clip", "dino", "aesthetic"})
    about |= {"folder": str(folder), "identity": identity, "captions": [c for _, c in items], "count": len(items)}
    cache(items, lambda: make_encoder(about, device), identity, run_dir / "teacher" / "cache")
    write_json(run_dir / "teacher" / "teacher.json", about)


def check_pipeline(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet's weight files, by name. Raises :class:`InputError` for anything but an SDXL pipeline."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} holds no pipeline: model_index.json or the scheduler's is missing or broken."
        ) from None
    prediction, allowed = scheduler.get("prediction_type", "epsilon"), "a StableDiffusionXLPipeline, epsilon"
    if name != "StableDiffusionXLPipeline" or prediction != "epsilon":
        raise InputError(f"{folder} holds a {name} that predicts {prediction}; allowed: {allowed}.")
    files = sorted((folder / "unet").glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}/unet holds no weights as safetensors; fetch them again.")
    return {path.name: sha256(path) for path in files}


def load_vae(about: dict, device: torch.device):
    """The autoencoder, frozen; in float32 where it would overflow in 16 bits (its own ``force_upcast``)."""
    from diffusers import AutoencoderKL

    own = about["vae"] == OWN_VAE
    folder = Path(about["folder"]) / "vae" if own else locate(about["vae"], "vae", about["download"])
    with readable_model(folder):
        upcast = AutoencoderKL.load_config(folder).get("force_upcast", True)
        dtype = torch.float32 if upcast else PRECISIONS[about["precision"]]
        vae = AutoencoderKL.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **variant(folder, about["precision"] != "fp32")
        )
    return vae.to(device).eval().requires_grad_(False)


def make_encoder(about: dict, device: torch.device) -> Encoder:
    """The pipeline's text encoders and the autoencoder, for :func:`dcm.data.captions.cache`."""
    from diffusers import StableDiffusionXLPipeline

    folder, dtype, vae = Path(about["folder"]), PRECISIONS[about["precision"]], load_vae(about, device)
    low = dtype != torch.float32
    with readable_model(folder):
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, unet=None, vae=vae, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
            **variant(folder / "text_encoder", low),
        )  # fmt: skip
    for part in (pipe.text_encoder, pipe.text_encoder_2):
        part.to(device)

    @torch.no_grad()
    def text(captions: list[str]) -> tuple[Tensor, Tensor]:
        parts = [captions[i : i + about["batch"]] for i in range(0, len(captions), about["batch"])]
        made = [pipe.encode_prompt(part, device=device, do_classifier_free_guidance=False) for part in parts]
        return torch.cat([m[0] for m in made]).to(dtype).cpu(), torch.cat([m[2] for m in made]).to(dtype).cpu()

    @torch.no_grad()
    def latent(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = [vae.encode(x[None].to(device, vae.dtype)).latent_dist for x in images]
        mean, deviation = (torch.cat([getattr(d, name) for d in posterior]) for name in ("mean", "std"))
        return mean.float() * vae.config.scaling_factor, deviation.float() * vae.config.scaling_factor

    return Encoder(text, latent, about["resolution"], about["flip"], about["seed"])
