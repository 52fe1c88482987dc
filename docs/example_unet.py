"""Any diffusers UNet that predicts noise becomes a CM and a Direct CM: no files, no settings of this study."""

from copy import deepcopy

import torch
from diffusers import DDPMScheduler, UNet2DModel

from dcm import ConsistencyFunction, Grid, Group, ModuleStudents, NoiseSchedule, Pairs, Settings, distill, sample


class Network(torch.nn.Module):
    shape, schedule = (1, 8, 8), NoiseSchedule.from_betas(DDPMScheduler(beta_schedule="scaled_linear").betas)

    def __init__(self):  # put your trained network here
        super().__init__()
        blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False)
        self.unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 16), norm_num_groups=8, num_class_embeds=11, **blocks)

    def forward(self, x, t, condition):  # eps(x, t, c)
        return self.unet(x, t, class_labels=condition).sample

    predict_noise = forward  # this and the next are what a teacher must offer, with `shape` and `schedule`

    def null_condition(self, condition):
        return torch.full_like(condition, 10)


class Images:
    def draw(self, generator, batch):  # put your images here, in [-1, 1], and their classes
        return torch.rand(batch, 1, 8, 8, generator=generator) * 2 - 1, torch.randint(10, (batch,), generator=generator)


teacher, group = Network().eval(), Group("ddim", intervals=10, guidance=(2.0,), horizons=(1, 10), seeds=(0,))
students = ModuleStudents([deepcopy(teacher) for member in group.members])
f = ConsistencyFunction(teacher.schedule, prediction="epsilon")
for state in distill(Pairs(teacher, Images(), group, batch=8), students, Settings(updates=3, lr=1e-4), f):
    print(f"update {state.update}: losses of CM and Direct CM {state.loss.tolist()}")
noise, c = torch.randn(4, 1, 8, 8), torch.arange(4)
images = sample(f, students, noise.expand(2, 4, 1, 8, 8), c.expand(2, 4), Grid(10), fresh_noise=[])  # in one step
