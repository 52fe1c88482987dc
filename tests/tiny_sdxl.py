"""A random SDXL pipeline of some hundred thousand weights, images with captions, and encoders: everything but the download."""

import random_sdxl
from random_sdxl import CAPTIONS, write_images
from random_sdxl import TINY_UNET as UNET

__all__ = ["CAPTIONS", "UNET", "write_all", "write_images"]


def write_all(folder) -> dict:
    """The whole of it; returns notebook 1's parameters for it."""
    return random_sdxl.write_all(folder) | dict(
        study="sdxl", data="folder", resolution=64, precision="fp32", batch=4, guidance=[2.0], intervals=[4, 5], samples=2
    )
