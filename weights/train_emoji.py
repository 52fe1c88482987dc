"""How ``weights/emoji`` was trained: a text-to-image latent diffusion model of SDXL's architecture, in miniature.

    python weights/train_emoji.py data/emoji --out weights/emoji

The folder is that of ``emoji_images.py``. Two stages, by the clock: an autoencoder (64 x 64 pixels to 4 x 16 x 16), then
UNet and both text encoders together on its latents, noise prediction as SDXL's, one prompt in ten dropped. Averaged
weights are saved as a StableDiffusionXLPipeline in float16, with captions.txt, the training captions.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from shutil import copyfile
from typing import TextIO

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)  # fmt: skip
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dcm.data.captions import captioned_images
from dcm.support.files import sha256, write_json, write_text

SIZE, LENGTH, WORDS = 64, 24, 2400  # pixels a side, tokens a caption, tokens in all
# SDXL's own settings but for the widths: three resolutions, text from the second on, more layers of it further down.
UNET = dict(
    sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=[64, 96, 112],
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], transformer_layers_per_block=[1, 1, 2],
    attention_head_dim=[2, 3, 4], cross_attention_dim=192, use_linear_projection=True, addition_embed_type="text_time",
    addition_time_embed_dim=32, projection_class_embeddings_input_dim=128 + 6 * 32, norm_num_groups=16,
)  # fmt: skip
VAE = dict(
    block_out_channels=[32, 64, 64], down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
    latent_channels=4, norm_num_groups=16, sample_size=SIZE, layers_per_block=1, force_upcast=False,
)  # fmt: skip
SCHEDULE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
)
SIZE_IDS = (SIZE, SIZE, 0, 0, SIZE, SIZE)  # no emoji is cropped
KL, DROPPED, EMA, WARMUP = 1e-6, 0.1, 0.9995, 500


def make_tokenizer(captions: list[str], folder: Path, words: int = WORDS) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer with a vocabulary of its own: the frequent words of `captions` are one token each."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    split = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=words, end_of_word_suffix="</w>", special_tokens=[start, end], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator((c.lower() for c in captions), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    bpe.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    ends = (f"{letter}</w>" for letter in pre_tokenizers.ByteLevel.alphabet())  # a letter alone is a word, too
    write_json(folder / "vocab.json", vocabulary | {token: i for i, token in enumerate(sorted({*ends} - {*vocabulary}), len(vocabulary))})
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def text_config(width: int, tokenizer, projection: int = 128) -> CLIPTextConfig:
    """Of a text encoder; like SDXL's, the last layer of three is read for the pooled embedding alone."""
    ends = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=projection, **ends,
    )  # fmt: skip


def make_pipeline(captions: list[str], scratch: Path) -> StableDiffusionXLPipeline:
    """The whole model with fresh weights."""
    tokenizer = make_tokenizer(captions, scratch)
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(**VAE), unet=UNet2DConditionModel(**UNET),
        text_encoder=CLIPTextModel(text_config(64, tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(text_config(128, tokenizer)),
        tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=EulerDiscreteScheduler(**SCHEDULE),
    )  # fmt: skip


def pixels(items: list[tuple[Path, str]]) -> Tensor:
    """All images as uint8 (n, 3, 64, 64)."""
    return torch.stack([torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path, _ in items])


class Text(nn.Module):
    """Both text encoders as the pipeline uses them: ids (B, L) -> embeddings (B, L, E), pooled (B, F)."""

    def __init__(self, pipe: StableDiffusionXLPipeline):
        super().__init__()
        self.one, self.two = pipe.text_encoder, pipe.text_encoder_2

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The second-to-last hidden states side by side, and the second encoder's pooled output."""
        one, two = (encoder(ids, output_hidden_states=True) for encoder in (self.one, self.two))
        return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


class Autoencoded(nn.Module):
    """Images (B, 3, H, W) -> their reconstructions from one draw of the posterior, and its divergence from N(0, 1)."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of images in [-1, 1]."""
        posterior = self.vae.encode(x).latent_dist
        return self.vae.decode(posterior.sample()).sample, posterior.kl().mean()


class Denoiser(nn.Module):
    """Text encoders and UNet as one network: noisy latents, steps, ids and which prompts are kept -> noise."""

    def __init__(self, pipe: StableDiffusionXLPipeline):
        super().__init__()
        self.text, self.unet = Text(pipe), pipe.unet

    def forward(self, x: Tensor, step: Tensor, ids: Tensor, kept: Tensor) -> Tensor:
        """Of latents (B, 4, 16, 16), steps (B,) in 0..999, ids (B, L); `kept` (B,) is 0 where the prompt is dropped."""
        embeddings, pooled = self.text(ids)
        sizes = torch.tensor(SIZE_IDS, device=x.device, dtype=torch.float32).expand(len(x), -1)
        added = {"text_embeds": pooled * kept[:, None], "time_ids": sizes}
        return self.unet(x, step, encoder_hidden_states=embeddings * kept[:, None, None], added_cond_kwargs=added).sample


class Training:
    """Adam on one network for a time, with a moving average of its weights, and a line of JSON now and then."""

    def __init__(self, network: nn.Module, device: torch.device, rate: float, say: TextIO):
        self.network, self.rate, self.device, self.say = network.to(device).train(), rate, device, say
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=1e-3)
        self.run = torch.compile(self.network) if device.type == "cuda" else self.network

    def train(self, seconds: float, loss_of: Callable[[nn.Module, torch.Generator], Tensor], every: int = 100) -> int:
        """Update until the time is over; returns the number of updates. The clock is read `every` few of them."""
        g, began, share, update = torch.Generator(self.device).manual_seed(0), time.monotonic(), 0.0, 0
        pairs = list(zip(self.average.parameters(), self.network.parameters()))
        ours, theirs = ([pair[k].data for pair in pairs] for k in (0, 1))
        while share < 1:
            # Linear warm-up, then a cosine to 0 at the end of the time.
            rate = self.rate * min(1.0, (update + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = loss_of(self.run, g)
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            torch._foreach_lerp_(ours, theirs, 1 - min(EMA, (1 + update) / (10 + update)))
            update += 1
            if update == 1 and every > 1:
                began = time.monotonic()  # compiled by now
            elif update % every == 0:
                share = min(1.0, (time.monotonic() - began) / seconds)
                if update % (10 * every) == 0 or share == 1:
                    self.say.write(json.dumps({"update": update, "share": round(share, 3), "loss": loss.item()}) + "\n")
                    self.say.flush()
        return update


def train_autoencoder(pipe, images: Tensor, seconds: float, batch: int, say: TextIO, every: int) -> int:
    """Absolute error of pixels and of differences between neighbours, and a weak pull to N(0, 1). Sets ``pipe.vae``."""
    device = images.device
    training = Training(Autoencoded(pipe.vae), device, 1e-3, say)
    edges = lambda d: (d.diff(dim=-1).abs().mean() + d.diff(dim=-2).abs().mean()) / 2

    def loss_of(run, g: torch.Generator) -> Tensor:
        x = images[torch.randint(len(images), (batch,), device=device, generator=g)].float() / 127.5 - 1
        x = torch.where(torch.rand(batch, 1, 1, 1, device=device, generator=g) < 0.5, x, x.flip(-1))
        out, divergence = run(x)
        off = out.float() - x
        return off.abs().mean() + edges(off) + KL * divergence.float()

    updates = training.train(seconds, loss_of, every)
    pipe.register_modules(vae=training.average.vae)
    return updates


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (n, 4, 16, 16) of all images' posteriors."""
    each = [vae.encode(part.float() / 127.5 - 1).latent_dist for part in images.split(256)]
    return torch.cat([d.mean for d in each]), torch.cat([d.std for d in each])


def train_denoiser(pipe, images: Tensor, captions: list[str], seconds: float, batch: int, say: TextIO, every: int) -> int:
    """The mean squared error of the noise. Sets the pipeline's UNet and text encoders."""
    device = images.device
    mean, deviation = encode(pipe.vae, images)
    scale = 1 / mean.std().item()
    pipe.vae.register_to_config(scaling_factor=scale)
    options = dict(padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    ids = pipe.tokenizer(captions, **options).input_ids.to(device)
    kept_signal = DDPMScheduler.from_config(pipe.scheduler.config).alphas_cumprod.to(device)
    training = Training(Denoiser(pipe), device, 1e-3, say)

    def loss_of(run, g: torch.Generator) -> Tensor:
        i = torch.randint(len(ids), (batch,), device=device, generator=g)
        drawn, noise = (torch.randn(batch, *mean.shape[1:], device=device, generator=g) for _ in range(2))
        step = torch.randint(len(kept_signal), (batch,), device=device, generator=g)
        kept = (torch.rand(batch, device=device, generator=g) >= DROPPED).float()
        x, a = scale * (mean[i] + deviation[i] * drawn), kept_signal[step][:, None, None, None]
        return (run(a.sqrt() * x + (1 - a).sqrt() * noise, step, ids[i], kept).float() - noise).square().mean()

    updates = training.train(seconds, loss_of, every)
    own = training.average
    pipe.register_modules(unet=own.unet, text_encoder=own.text.one, text_encoder_2=own.text.two)
    return updates


def save(pipe: StableDiffusionXLPipeline, captions: list[str], out: Path, about: dict) -> None:
    """The pipeline in float16, its captions, and report.json with the SHA-256 of its weights."""
    half = deepcopy({name: getattr(pipe, name) for name in ("vae", "unet", "text_encoder", "text_encoder_2")})
    pipe.register_modules(**{name: network.to("cpu", torch.float16).eval() for name, network in half.items()})
    pipe.save_pretrained(out, safe_serialization=True)
    for name in ("vocab.json", "merges.txt"):  # transformers 4 reads them, 5 leaves them out
        copyfile(out / "tokenizer" / name, out / "tokenizer_2" / name)
    mixed = random.Random(0).sample(captions, len(captions))  # so that the first few are of every kind
    write_text(out / "captions.txt", "".join(f"{caption}\n" for caption in mixed))
    digests = {p.relative_to(out).as_posix(): sha256(p) for p in sorted(out.rglob("*.safetensors"))}
    count = {name: sum(p.numel() for p in network.parameters()) for name, network in half.items()}
    write_json(out / "report.json", {"sha256": digests, "parameters": count, "training": about})


def main() -> None:
    """Train and save; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "emoji")
    parser.add_argument("--minutes", type=float, nargs=2, default=(4.0, 14.0), help="for the autoencoder and for the rest")
    parser.add_argument("--batch", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--every", type=int, default=100, help="updates between two looks at the clock")
    asked = parser.parse_args()
    items = captioned_images(asked.data / "train")
    captions = [caption for _, caption in items]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    asked.out.mkdir(parents=True, exist_ok=True)
    pipe = make_pipeline(captions, asked.out / "tokenizer")
    images = pixels(items).to(device)
    with open(asked.out / "log.jsonl", "a") as say:
        first = train_autoencoder(pipe, images, 60 * asked.minutes[0], asked.batch[0], say, asked.every)
        second = train_denoiser(pipe, images, captions, 60 * asked.minutes[1], asked.batch[1], say, asked.every)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    about = {"images": len(items), "minutes": asked.minutes, "batch": asked.batch, "updates": [first, second], "device": name}
    save(pipe, captions, asked.out, about | {"torch": torch.__version__})


if __name__ == "__main__":
    main()
