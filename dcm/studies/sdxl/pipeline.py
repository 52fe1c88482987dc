"""The SDXL pipeline on disk: checked, its encoders loaded, and notebook 1's work with them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dcm.data.captions import cache, marks, pixels
from dcm.metrics.encoders import own_encoders
from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import solve
from dcm.studies.sdxl.needs import survey
from dcm.support.errors import InputError
from dcm.support.files import fingerprint, sha256, write_json
from dcm.support.pretrained import check_packages, loading, locate, readable_model
from dcm.support.seeds import generator, sample_noise
from dcm.teachers.sdxl import PromptedUNet, Prompts, SDXLTeacher

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OWN_VAE = "of the model"
IDENTITY = ("seed", "vae", "resolution", "flip", "precision")  # what the encoded data depend on
JUDGES = ("clip", "dino", "aesthetic", "encoder", "classifier")  # what measures quality, where it is here


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work: check the pipeline, encode what captions it has no whole file of; raises :class:`InputError`."""
    check_packages()
    folder, items = survey(p)
    own = p.data == "teacher"
    items = captions_of(folder, p.teacher_images) if own else items
    identity = p.model_dump(include={"study", *IDENTITY}) | {"unet": check_pipeline(folder)}
    about = p.model_dump(include={"study", *IDENTITY, "batch", "download", "inception", *JUDGES})
    own_encoders(about, device)  # what measures later must be there before hours of work
    whole = identity | {"items": fingerprint(marks(items)), "drawn": own}  # samples and students of others are not taken for this one's
    about |= {"folder": str(folder), "identity": whole, "captions": [c for _, c in items], "count": len(items)}
    if cut := cut_captions(folder, [caption for _, caption in items]):
        print(f"{cut} of {len(items)} captions are longer than the tokenizer takes; what is beyond is cut.")
    cache(items, lambda: Encoder(about, device), identity, run_dir / "teacher" / "cache")
    write_json(run_dir / "teacher" / "teacher.json", about)


def captions_of(folder: Path, count: int) -> list[tuple[Path, str]]:
    """The first `count` captions that lie beside a pipeline, a line each, in place of images; each with that file's path."""
    path = folder / "captions.txt"
    captions = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    if not (captions := [line.strip() for line in captions if line.strip()][:count]):
        allowed = "data = 'folder', with images and captions in data_dir"
        raise InputError(f"data = 'teacher' takes its captions from {path}, which is not there or empty; allowed: {allowed}.")
    return [(path, caption) for caption in captions]


def cut_captions(folder: Path, captions: list[str]) -> int:
    """How many have more tokens than the pipeline's tokenizers take."""
    from transformers import CLIPTokenizer

    with readable_model(folder):
        read = [CLIPTokenizer.from_pretrained(folder / name) for name in ("tokenizer", "tokenizer_2")]
    longest = [(one(captions).input_ids, one.model_max_length) for one in read]
    return sum(any(len(ids[i]) > most for ids, most in longest) for i in range(len(captions)))


def check_pipeline(folder: Path) -> dict[str, str]:
    """SHA-256 of the UNet's weight files, by name. Raises :class:`InputError` for anything but an SDXL pipeline."""
    try:
        name = json.loads((folder / "model_index.json").read_text())["_class_name"]
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    except (OSError, ValueError, KeyError):
        why = "model_index.json or the scheduler's is missing or broken"
        raise InputError(f"{folder} holds no pipeline: {why}.") from None
    prediction, allowed = scheduler.get("prediction_type", "epsilon"), "a StableDiffusionXLPipeline, epsilon"
    if name != "StableDiffusionXLPipeline" or prediction != "epsilon":
        raise InputError(f"{folder} holds a {name} that predicts {prediction}; allowed: {allowed}.")
    files = sorted((folder / "unet").glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}/unet holds no weights as safetensors; fetch them again.")
    return {path.name: sha256(path) for path in files}


def load_teacher(about: dict, prompts: Prompts, shape: tuple[int, ...], device: torch.device) -> SDXLTeacher:
    """The pipeline's UNet on its schedule, as teacher of latents of a `shape`; raises :class:`InputError`."""
    from diffusers import DDPMScheduler, UNet2DConditionModel

    folder, dtype = Path(about["folder"]), PRECISIONS[about["precision"]]
    if not (folder / "unet").is_dir():
        raise InputError(f"the pipeline is no longer in {folder}; put it back, or run notebook 1 again.")
    with readable_model(folder):
        options = loading(folder / "unet", dtype, low=dtype != torch.float32)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet", **options).to(device)
        schedule = NoiseSchedule.from_betas(DDPMScheduler.from_pretrained(folder, subfolder="scheduler").betas)
    return SDXLTeacher(PromptedUNet(unet, prompts, about["batch"]), schedule, shape)


def load_vae(about: dict, device: torch.device):
    """The autoencoder, frozen; in float16, but in float32 where it would overflow (its own ``force_upcast``) or all is."""
    from diffusers import AutoencoderKL

    own = about["vae"] == OWN_VAE
    folder = Path(about["folder"]) / "vae" if own else locate(about["vae"], "vae", about["download"])
    with readable_model(folder):
        upcast, low = AutoencoderKL.load_config(folder).get("force_upcast", True), about["precision"] != "fp32"
        dtype = torch.float16 if low and not upcast else torch.float32
        vae = AutoencoderKL.from_pretrained(folder, **loading(folder, dtype, low))
    return vae.to(device).eval().requires_grad_(False)


@contextmanager
def by_rule() -> Iterator[None]:
    """cuDNN chooses algorithms by rule: for the autoencoder its search takes much memory and finds none that is faster."""
    searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = searching


class Encoder:
    """The pipeline's text encoders and the autoencoder, for :func:`dcm.data.captions.cache`."""

    def __init__(self, about: dict, device: torch.device):
        from diffusers import StableDiffusionXLPipeline

        self.about, self.device, self.dtype = about, device, PRECISIONS[about["precision"]]
        folder, self.vae = Path(about["folder"]), load_vae(about, device)
        options = loading(folder / "text_encoder", self.dtype, low=self.dtype != torch.float32) | {"local_files_only": True}
        with readable_model(folder):
            self.pipe = StableDiffusionXLPipeline.from_pretrained(folder, unet=None, vae=self.vae, **options)
        for part in (self.pipe.text_encoder, self.pipe.text_encoder_2):
            part.to(device)

    @torch.no_grad()
    def encode(self, rows: range, items: list[tuple[Path, str]]) -> dict[str, Tensor]:
        """One file. Item i depends on (seed, i) alone: its crop, its flip, its draw from the posterior."""
        seed, size, flip = (self.about[name] for name in ("seed", "resolution", "flip"))
        embeddings, pooled = self.text([caption for _, caption in items])
        if self.about["identity"]["drawn"]:
            size_ids = torch.tensor([(size, size, 0, 0, size, size)], dtype=torch.int32).expand(len(items), -1)
            latents = self.drawn(rows, Prompts(embeddings, pooled, size_ids))
            return {"latents": latents, "embeddings": embeddings, "pooled": pooled, "size_ids": size_ids.contiguous()}
        draws = [generator("cpu", seed, "encode", i) for i in rows]
        made = [pixels(path, size, g, flip) for (path, _), g in zip(items, draws)]
        with by_rule():
            posterior = [self.vae.encode(x[None].to(self.device, self.vae.dtype)).latent_dist for x, _ in made]
        own = ([getattr(d, name) for d in posterior] for name in ("mean", "std"))
        mean, deviation = (torch.cat(each).float().cpu() * self.vae.config.scaling_factor for each in own)
        latents = mean + deviation * sample_noise(seed, "encode", rows, mean.shape[1:])
        size_ids = torch.tensor([ids for _, ids in made], dtype=torch.int32)
        return {"latents": latents, "embeddings": embeddings, "pooled": pooled, "size_ids": size_ids}

    @cached_property
    def teacher(self) -> SDXLTeacher:
        """For data that it draws itself; its prompts are those of :meth:`drawn`."""
        config, shrunk = self.vae.config, 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (config.latent_channels, *2 * [self.about["resolution"] // shrunk])
        nothing = Prompts(*torch.zeros(3, 1))
        return load_teacher(self.about, nothing, shape, self.device)

    def drawn(self, rows: range, prompts: Prompts) -> Tensor:
        """Latents (n, C, h, w) that the teacher draws for prompts, unguided, by DDIM with N = 50."""
        self.teacher.network.prompts = prompts
        noise = sample_noise(self.about["seed"], "teacher", rows, self.teacher.shape).to(self.device)
        condition = torch.arange(len(prompts), device=self.device)
        return solve(self.teacher, noise, 50, condition, 1.0, "ddim", Grid(50)).x.float().cpu()

    def text(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (n, L, E) and pooled ones (n, F) of captions."""
        batch = self.about["batch"]
        parts = [captions[i : i + batch] for i in range(0, len(captions), batch)]
        made = [self.pipe.encode_prompt(part, device=self.device, do_classifier_free_guidance=False) for part in parts]
        embeddings, pooled = (torch.cat([one[i] for one in made]).to(self.dtype).cpu() for i in (0, 2))
        return embeddings, pooled
