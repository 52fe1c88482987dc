"""Diffusers pipelines as small as they get, as strangers bring them: saved by ``save_pretrained``, with random weights."""

from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

BLOCKS = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, layers_per_block=1,
              add_attention=False, block_out_channels=(8, 16), norm_num_groups=8)  # fmt: skip


def tiny_unet(size: int = 8, channels: int = 1, seed: int = 0, **more) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DModel(**dict(sample_size=size, in_channels=channels, out_channels=channels) | BLOCKS | more)


def saved(folder: Path, unet: UNet2DModel | None = None, scheduler=None, **options) -> Path:
    """A pipeline's folder; `options` are those of a DDPMScheduler, by default that of google/ddpm-cifar10-32."""
    DDPMPipeline(unet or tiny_unet(), scheduler or DDPMScheduler(**options)).save_pretrained(folder)
    return folder
