"""An SDXL pipeline with random weights, of the published size or smaller, images with captions, and encoders: everything
but the download. For benchmarks/sdxl_rehearsal.py, and at its smallest for the tests.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from dcm.teachers.sdxl import Prompts

# The UNet of SDXL base 1.0 as published: unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, less what
# equals the defaults of diffusers' UNet2DConditionModel. It has 2,567,463,684 parameters.
SDXL_UNET = dict(
    sample_size=128, in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280], layers_per_block=2,
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], use_linear_projection=True,
    transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], cross_attention_dim=2048,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
)  # fmt: skip
TINY_UNET = dict(
    sample_size=8, in_channels=4, out_channels=4, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], block_out_channels=[8, 16], layers_per_block=1,
    transformer_layers_per_block=[1, 1], attention_head_dim=[2, 4], cross_attention_dim=24, use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    norm_num_groups=4,
)  # fmt: skip
CAPTIONS = ["a red square", "a blue circle", "two green dots", "noise", "a cat in a red hat", "blue on green"]
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)


def transformer(width: int, layers: int, heads: int, inner: int) -> dict:
    """Sizes as ``transformers`` names them."""
    return dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)


@dataclass(frozen=True)
class Sizes:
    """What is built; by default what the paper's setting loads.

    Attributes
    ----------
    unet : configuration of diffusers' ``UNet2DConditionModel``.
    vae : channels of the autoencoder's blocks. layers : of each block. groups : of its norms.
    text, text_2, clip_text, vision, dino : transformers' sizes. projections : of text_2 and of CLIP.
    tokens : a caption. image, patch : of CLIP's vision model. side : pixels a side of the training images.
    letters : whether the vocabulary is single letters; else CLIP's own, where open_clip is installed.
    """

    unet: dict = field(default_factory=lambda: SDXL_UNET)
    vae: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    text: dict = field(default_factory=lambda: transformer(768, 12, 12, 3072))
    text_2: dict = field(default_factory=lambda: transformer(1280, 32, 20, 5120))
    clip_text: dict = field(default_factory=lambda: transformer(768, 12, 12, 3072))
    vision: dict = field(default_factory=lambda: transformer(1024, 24, 16, 4096))
    dino: dict = field(default_factory=lambda: transformer(1024, 24, 16, 4096))
    projections: tuple[int, int] = (1280, 768)
    tokens: int = 77
    image: int = 224
    patch: int = 14
    side: int = 1024
    letters: bool = False


TINY = Sizes(
    unet=TINY_UNET, vae=(8, 8, 8, 8), layers=1, groups=4, text=transformer(8, 2, 2, 16), text_2=transformer(16, 2, 2, 16),
    clip_text=transformer(8, 2, 2, 16), vision=transformer(8, 1, 2, 16), dino=transformer(8, 1, 2, 32), projections=(16, 12),
    tokens=12, image=16, patch=8, side=64, letters=True,
)  # fmt: skip


def random_unet(config: dict, device: torch.device | str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of `config` with fresh weights, made on `device` in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.random.fork_rng():
            torch.manual_seed(0)
            return UNet2DConditionModel(**config)
    finally:
        torch.set_default_dtype(before)


class RandomLatents:
    """Normal latents with random prompts, in place of data."""

    def __init__(self, shape: tuple[int, ...], prompts: int):
        self.shape, self.prompts = shape, prompts

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """As :meth:`dcm.data.captions.CachedLatents.draw`."""
        options = dict(generator=generator, device=generator.device)
        return torch.randn(batch, *self.shape, **options), torch.randint(self.prompts, (batch,), **options)


def random_prompts(config: dict, count: int) -> Prompts:
    """Normal embeddings of SDXL's lengths, and the size ids of a full image."""
    g = torch.Generator().manual_seed(0)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    side = 8 * config["sample_size"]
    return Prompts(
        torch.randn(count, 77, config["cross_attention_dim"], generator=g),
        torch.randn(count, pooled, generator=g),
        torch.tensor([[side, side, 0, 0, side, side]]).expand(count, 6),
    )


def vocabulary(letters: bool) -> tuple[list[str], list[str]]:
    """Tokens and merges: CLIP's, from the package open_clip where it is installed, or single letters without merges."""
    ends = ["<|startoftext|>", "<|endoftext|>"]
    if letters or (found := find_spec("open_clip")) is None or not found.origin:
        plain = "abcdefghijklmnopqrstuvwxyz0123456789"
        return [*plain, *(f"{c}</w>" for c in plain), *ends], []
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves; the others come after
    symbols = [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]
    lines = gzip.open(Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")).read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]  # as OpenAI's code takes them
    return [*symbols, *(f"{c}</w>" for c in symbols), *(m.replace(" ", "") for m in merges), *ends], merges


def write_tokenizer(folder: Path, sizes: Sizes = TINY) -> int:
    """CLIP's tokenizer on a :func:`vocabulary`; returns how many tokens there are."""
    from transformers import CLIPTokenizer

    tokens, merges = vocabulary(sizes.letters)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=sizes.tokens).save_pretrained(folder)
    return len(tokens)


def text_config(size: dict, projection: int, tokens: int, length: int, **more):
    """A CLIP text model's configuration for a vocabulary of so many `tokens`, the end's last."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=tokens, max_position_embeddings=length, projection_dim=projection, bos_token_id=tokens - 2,
        eos_token_id=tokens - 1, pad_token_id=tokens - 1, **size, **more,
    )  # fmt: skip


def write_pipeline(folder: Path, sizes: Sizes = TINY, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Path:
    """A StableDiffusionXLPipeline with random weights, as safetensors; of 16-bit weights the fp16 variant."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    tokens, deep = write_tokenizer(folder / "made", sizes), len(sizes.vae)
    config = lambda size, to, act: text_config(size, to, tokens, sizes.tokens, hidden_act=act)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        text = CLIPTextModel(config(sizes.text, sizes.text["hidden_size"], "quick_gelu")).to(dtype)
        text_2 = CLIPTextModelWithProjection(config(sizes.text_2, sizes.projections[0], "gelu")).to(dtype)
        vae = AutoencoderKL(
            block_out_channels=list(sizes.vae), down_block_types=["DownEncoderBlock2D"] * deep,
            up_block_types=["UpDecoderBlock2D"] * deep, latent_channels=4, norm_num_groups=sizes.groups,
            sample_size=sizes.side, scaling_factor=0.13025, layers_per_block=sizes.layers,
        ).to(dtype)  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=text, text_encoder_2=text_2, tokenizer=CLIPTokenizer.from_pretrained(folder / "made"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "made"), unet=random_unet(sizes.unet, device, dtype),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
    )  # fmt: skip
    pipe.save_pretrained(folder, variant=None if dtype == torch.float32 else "fp16")
    return folder


def write_images(folder: Path, count: int = 6, side: int = 64) -> Path:
    """Pictures of several sizes with captions in .txt files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (side + 8 * (i % 3), side + 8 - 4 * (i % 2), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i:04d}.png", compress_level=1)
        (folder / f"{i:04d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])
    return folder


def write_clip(folder: Path, sizes: Sizes = TINY) -> Path:
    """A random CLIPModel with its tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    tokens, to = write_tokenizer(folder, sizes), sizes.projections[1]
    vision = CLIPVisionConfig(image_size=sizes.image, patch_size=sizes.patch, projection_dim=to, **sizes.vision)
    text = text_config(sizes.clip_text, to, tokens, sizes.tokens)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=to)).save_pretrained(folder)
    return folder


def write_dino(folder: Path, sizes: Sizes = TINY) -> Path:
    """A random Dinov2Model."""
    from transformers import Dinov2Config, Dinov2Model

    size = {name: value for name, value in sizes.dino.items() if name != "intermediate_size"}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        Dinov2Model(Dinov2Config(image_size=28, patch_size=14, initializer_range=1.0, **size)).save_pretrained(folder)
    return folder


def write_aesthetic(path: Path, sizes: Sizes = TINY) -> Path:
    """A random aesthetic predictor, under the published names."""
    from safetensors.torch import save_file

    widths = [sizes.projections[1], 1024, 128, 64, 16, 1]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = {k: torch.nn.Linear(*s).state_dict() for k, s in zip((0, 2, 4, 6, 7), zip(widths, widths[1:]))}
    save_file({f"layers.{k}.{name}": value for k, state in layers.items() for name, value in state.items()}, path)
    return path


def write_all(
    folder: Path, sizes: Sizes = TINY, images: int = 6, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, str]:
    """The whole of it; returns where it lies, as notebook 1's parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "data_dir": write_images(folder / "images", images, sizes.side), "clip": write_clip(folder / "clip", sizes),
        "model": write_pipeline(folder / "pipeline", sizes, device, dtype), "dino": write_dino(folder / "dino", sizes),
        "aesthetic": write_aesthetic(folder / "aesthetic.safetensors", sizes),
    }  # fmt: skip
    return {name: str(path) for name, path in made.items()}
