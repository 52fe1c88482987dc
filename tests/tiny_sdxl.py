"""A random SDXL pipeline of some hundred thousand weights, images with captions, and encoders: everything but the download."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

UNET = dict(
    sample_size=8, in_channels=4, out_channels=4, down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], block_out_channels=[8, 16], layers_per_block=1,
    transformer_layers_per_block=[1, 1], attention_head_dim=[2, 4], cross_attention_dim=24, use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=64,
    norm_num_groups=4,
)  # fmt: skip
CAPTIONS = ["a red square", "a blue circle", "two green dots", "noise", "a cat in a red hat", "blue on green"]


def write_tokenizer(folder: Path) -> None:
    """CLIP's tokenizer on a vocabulary of single letters: no merges."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").parent.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12).save_pretrained(folder)


def text_config(width: int, projection: int, **more):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=74, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=projection, bos_token_id=72, eos_token_id=73, pad_token_id=73, **more,
    )  # fmt: skip


def write_pipeline(folder: Path) -> Path:
    """A StableDiffusionXLPipeline with random weights, as safetensors."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_tokenizer(folder / "made")
        pipe = StableDiffusionXLPipeline(
            vae=AutoencoderKL(
                block_out_channels=[8, 8, 8, 8], down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4, latent_channels=4, norm_num_groups=4, sample_size=64,
                scaling_factor=0.13025, layers_per_block=1,
            ),
            text_encoder=CLIPTextModel(text_config(8, 8)),
            text_encoder_2=CLIPTextModelWithProjection(text_config(16, 16)),
            tokenizer=CLIPTokenizer.from_pretrained(folder / "made"),
            tokenizer_2=CLIPTokenizer.from_pretrained(folder / "made"),
            unet=UNet2DConditionModel(**UNET),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
            ),
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int = 6) -> Path:
    """Pictures of several sizes with captions in .txt files beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        size = (64 + 8 * (i % 3), 72 - 4 * (i % 2), 3)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(CAPTIONS[i % len(CAPTIONS)])
    return folder


def write_clip(folder: Path) -> Path:
    """A random CLIPModel with its tokenizer; embeddings of 12."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    config = CLIPConfig(text_config=text_config(8, 12).to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        CLIPModel(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_dino(folder: Path) -> Path:
    """A random Dinov2Model with features of 8."""
    from transformers import Dinov2Config, Dinov2Model

    with torch.random.fork_rng():
        torch.manual_seed(2)
        Dinov2Model(
            Dinov2Config(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                image_size=28,
                patch_size=14,
                initializer_range=1.0,
            )
        ).save_pretrained(folder)
    return folder


def write_all(folder: Path) -> dict:
    """The whole of it; returns notebook 1's parameters for it."""
    from safetensors.torch import save_file

    sizes = [12, 1024, 128, 64, 16, 1]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = {k: torch.nn.Linear(*s).state_dict() for k, s in zip((0, 2, 4, 6, 7), zip(sizes, sizes[1:]))}
    aesthetic = {f"layers.{k}.{name}": value for k, state in layers.items() for name, value in state.items()}
    save_file(aesthetic, folder / "aesthetic.safetensors")
    return dict(
        study="sdxl", data="folder", data_dir=str(write_images(folder / "images")), resolution=64, precision="fp32",
        model=str(write_pipeline(folder / "pipeline")), clip=str(write_clip(folder / "clip")),
        dino=str(write_dino(folder / "dino")), aesthetic=str(folder / "aesthetic.safetensors"), batch=4,
        guidance=[2.0], intervals=[4, 5], samples=2,
    )  # fmt: skip
