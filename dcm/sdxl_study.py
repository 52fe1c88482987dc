"""The paper's own setting: SDXL as teacher, LoRA adapters of its UNet as students, latents and prompts cached on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dcm.artifacts import fingerprint, project_path, read_json, sha256, write_json
from dcm.consistency import ConsistencyFunction
from dcm.errors import InputError
from dcm.image_study import fine_reference
from dcm.schedule import Grid, NoiseSchedule
from dcm.sdxl_data import CachedLatents, Encoder, cache, captioned_images
from dcm.students import Students
from dcm.studies import Study
from dcm.teachers.sdxl import PromptedUNet, SDXLTeacher
from dcm.team import Team

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OWN_VAE = "of the model"


def check_packages() -> None:
    """Raise :class:`InputError` when the packages that only this study needs are not installed."""
    missing = [name for name in ("transformers", "peft", "accelerate") if find_spec(name) is None]
    if missing:
        raise InputError(f"the study sdxl needs {', '.join(missing)}: install them with pip install -e '.[sdxl]'.")


def locate(source: str, parameter: str, download: bool = False, pipeline: bool = False, low: bool = True) -> Path:
    """The folder of a model: `source` itself where it is one, else the hub's copy on this machine.

    Parameters
    ----------
    parameter : its name, for the error. download : whether the hub may be asked. pipeline : whether it is a whole
    pipeline, of which the 16-bit weights are taken when `low`.

    Raises :class:`InputError` that says where it was looked for.
    """
    folder = project_path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import constants, snapshot_download

    try:
        if pipeline:
            from diffusers import DiffusionPipeline

            options = {"variant": "fp16"} if low else {}
            return Path(
                DiffusionPipeline.download(source, use_safetensors=True, local_files_only=not download, **options)
            )
        kept = ["*.json", "*.txt", "*.safetensors"]
        return Path(snapshot_download(source, allow_patterns=kept, local_files_only=not download))
    except Exception as error:  # whatever the hub's client raises: it is not here and could not be fetched
        tried = f" ({' '.join(str(error).split())[:160]})" if download else ""
        raise InputError(
            f"{parameter} = {source!r} is not here: {folder} is no folder, and {constants.HF_HUB_CACHE} has no copy of it"
            f"{tried}; put it there, or set download to true."
        ) from None


def _variant(folder: Path, low: bool) -> dict[str, str]:
    return {"variant": "fp16"} if low and any(folder.glob("*.fp16.safetensors")) else {}


def check_pipeline(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet's weight files, by name. Raises :class:`InputError` for anything but an SDXL pipeline."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        prediction = json.loads((folder / "scheduler/scheduler_config.json").read_text()).get(
            "prediction_type", "epsilon"
        )
    except (OSError, ValueError, KeyError):
        raise InputError(
            f"{folder} holds no pipeline: model_index.json or the scheduler's is missing or broken."
        ) from None
    if name != "StableDiffusionXLPipeline" or prediction != "epsilon":
        raise InputError(
            f"{folder} holds a {name} that predicts {prediction}; allowed: a StableDiffusionXLPipeline, epsilon."
        )
    files = sorted((folder / "unet").glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}/unet holds no weights as safetensors; fetch them again.")
    return {path.name: sha256(path) for path in files}


def load_vae(about: dict, device: torch.device):
    """The autoencoder, frozen; in float32 where it would overflow in 16 bits (its own ``force_upcast``)."""
    from diffusers import AutoencoderKL

    own = about["vae"] == OWN_VAE
    folder = Path(about["folder"]) / "vae" if own else locate(about["vae"], "vae", about["download"])
    with _readable(folder):
        upcast = AutoencoderKL.load_config(folder).get("force_upcast", True)
        dtype = torch.float32 if upcast else PRECISIONS[about["precision"]]
        vae = AutoencoderKL.from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, **_variant(folder, about["precision"] != "fp32")
        )
    return vae.to(device).eval().requires_grad_(False)


class _readable:
    """Turns what goes wrong while a model is read into one sentence."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> None:
        check_packages()
        self.quiet = warnings.catch_warnings()
        self.quiet.__enter__()
        warnings.simplefilter("ignore", FutureWarning)  # torch_dtype: its new name is unknown to older diffusers

    def __exit__(self, kind, error, trace) -> None:
        self.quiet.__exit__(kind, error, trace)
        if isinstance(error, (OSError, ValueError, KeyError, RuntimeError)) and not isinstance(error, InputError):
            text = " ".join(str(error).split())[:200]
            raise InputError(f"{self.folder} cannot be read as a model ({text}); fetch it again.") from None


def make_encoder(about: dict, device: torch.device) -> Encoder:
    """The pipeline's text encoders and the autoencoder, for :func:`dcm.sdxl_data.cache`."""
    from diffusers import StableDiffusionXLPipeline

    folder, dtype, vae = Path(about["folder"]), PRECISIONS[about["precision"]], load_vae(about, device)
    low = dtype != torch.float32
    with _readable(folder):
        pipe = StableDiffusionXLPipeline.from_pretrained(
            folder, unet=None, vae=vae, torch_dtype=dtype, use_safetensors=True, local_files_only=True,
            **_variant(folder / "text_encoder", low),
        )  # fmt: skip
    for part in (pipe.text_encoder, pipe.text_encoder_2):
        part.to(device)

    @torch.no_grad()
    def text(captions: list[str]) -> tuple[Tensor, Tensor]:
        made = [
            pipe.encode_prompt(captions[i : i + about["batch"]], device=device, do_classifier_free_guidance=False)
            for i in range(0, len(captions), about["batch"])
        ]
        return torch.cat([m[0] for m in made]).to(dtype).cpu(), torch.cat([m[2] for m in made]).to(dtype).cpu()

    @torch.no_grad()
    def latent(images: Tensor) -> tuple[Tensor, Tensor]:
        posterior = [vae.encode(x[None].to(device, vae.dtype)).latent_dist for x in images]
        mean, deviation = (torch.cat([getattr(d, name) for d in posterior]) for name in ("mean", "std"))
        return mean.float() * vae.config.scaling_factor, deviation.float() * vae.config.scaling_factor

    return Encoder(text, latent, about["resolution"], about["flip"], about["seed"], about["identity"])


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work for sdxl: check the pipeline and the captions, encode them once, note it in teacher.json.

    An interrupted run goes on after the last whole file. With ``dry_run`` nothing is looked for: the cost is measured.
    Raises :class:`InputError`.
    """
    check_packages()
    if p.dry_run:
        from dcm.sdxl_dry_run import dry_run, readable

        print(readable(dry_run(device, latent=p.resolution // 8, precision=p.precision)))
        raise InputError("dry_run = True: the cost is above, and nothing was trained; set dry_run to false to go on.")
    items = captioned_images(project_path(p.data_dir))
    folder = locate(p.model, "model", p.download, pipeline=True, low=p.precision != "fp32")
    if p.vae != OWN_VAE:
        locate(p.vae, "vae", p.download)
    identity = p.model_dump(include={"study", "seed", "vae", "resolution", "flip", "precision"})
    about = p.model_dump(
        include={
            "vae",
            "resolution",
            "flip",
            "seed",
            "precision",
            "batch",
            "download",
            "inception",
            "clip",
            "dino",
            "aesthetic",
        }
    )
    done, weights = run_dir / "teacher" / "teacher.json", check_pipeline(folder)
    about |= {"folder": str(folder), "identity": identity | {"unet": weights}, "captions": [c for _, c in items]}
    cache(items, lambda: make_encoder(about, device), about["identity"], run_dir / "teacher" / "cache")
    write_json(done, about | {"count": len(items)})


class SDXLStudy(Study):
    """SDXL with the prompts and latents that notebook 1 left in ``run_dir/teacher``.

    Raises :class:`InputError` when notebook 1 has not run, or the pipeline is no longer there.
    """

    costly = True

    def __init__(self, run_dir: Path, device: torch.device):
        from diffusers import DDPMScheduler, UNet2DConditionModel

        from dcm.sdxl_quality import SDXLQuality, find_encoders

        check_packages()
        done = run_dir / "teacher" / "teacher.json"
        if not done.exists():
            raise InputError(
                f"{done.parent} holds no teacher of the study sdxl; run notebook 1 with this run_dir first."
            )
        about = read_json(done)
        folder, dtype = Path(about["folder"]), PRECISIONS[about["precision"]]
        if not (folder / "unet").is_dir():
            raise InputError(f"the pipeline is no longer in {folder}; put it back, or run notebook 1 again.")
        with _readable(folder):
            unet = UNet2DConditionModel.from_pretrained(
                folder / "unet", torch_dtype=dtype, use_safetensors=True,
                **_variant(folder / "unet", dtype != torch.float32),
            ).to(device)  # fmt: skip
            schedule = NoiseSchedule.from_betas(DDPMScheduler.from_pretrained(folder, subfolder="scheduler").betas)
        self.run_dir, self.vae = run_dir, load_vae(about, device)
        data = CachedLatents.load(run_dir / "teacher" / "cache", about["count"])
        self.network = PromptedUNet(unet, data.prompts, about["batch"])
        teacher = SDXLTeacher(self.network, schedule, tuple(data.latents.shape[1:]))
        f = ConsistencyFunction(schedule, prediction="epsilon")
        quality = SDXLQuality(self.pictures, about["captions"], lambda: find_encoders(about, device))
        super().__init__(
            "sdxl",
            teacher,
            data,
            quality,
            f,
            chunk=about["batch"],
            exact=False,
            teacher_id=fingerprint(about["identity"]),
        )

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> Students:
        """Fresh adapters of rank and alpha `width`; they start as the teacher. `lora_rank` is of no use here."""
        from dcm.lora import LoRAStudents

        return LoRAStudents(self.network, seeds, width)

    def start_from_teacher(self, students: Students, seeds: Sequence[int], updates: int) -> None:
        """Nothing to do: adapters start as the teacher."""

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """A fine DDIM grid, as for the other image studies."""
        return fine_reference(self, x, n, condition, guidance, grid)

    @torch.no_grad()
    def pictures(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) decoded to images (B, 3, H, W) in [-1, 1], on the autoencoder's device."""
        z = x.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        return torch.cat([self.vae.decode(one[None], return_dict=False)[0] for one in z]).float().clamp(-1, 1)

    def before_training(self, students: Students, parameters, team: Team) -> None:
        """Gradient checkpointing and microbatch as asked for; on a GPU, refuse what its memory does not hold."""
        from dcm import memory

        ready_network(students, parameters)
        device = self.network.device
        if device.type == "cpu" and self.teacher.shape[-1] > 64:
            raise InputError(
                "SDXL at its own size needs a GPU, and none is present; dry_run on one says what it costs."
            )
        if device.type == "cuda":
            own = team.rows(parameters.batch)
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
            horizon = {1: "cm", distilled.group.intervals: "direct"}.get(member.horizon, f"h{member.horizon}")
            name = f"{horizon}-w{member.guidance:g}-seed{member.seed}"
            students.save(m, self.run_dir / "adapters" / distilled.name / name)


def ready_network(students, parameters) -> None:
    """Set what trades memory for time, as `parameters` ask."""
    unet = students.network.unet
    unet.enable_gradient_checkpointing() if parameters.gradient_checkpointing else unet.disable_gradient_checkpointing()
    students.microbatch = parameters.microbatch
