"""A UNet teacher as small as it gets, on images of 8 x 8."""

from dcm.teachers.unet import UNetConfig

TINY = UNetConfig(8, 1, 10, (16, 16), (False, True), layers=1, head_width=8, groups=8)
