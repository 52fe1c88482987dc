"""What the tests of the SDXL study share."""



import torch

from dcm.parameters.check import validate
from dcm.parameters.notebooks import DistillParameters, TeacherParameters
from dcm.students.lora import LoRAStudents

CPU = torch.device("cpu")
TRAIN = dict(
    study="sdxl", group_name="main", solver="ddim", intervals=4, guidance=[2.0], horizons=["cm", "direct"], seeds=[24],
    updates=3, batch=4, lr=1e-2, width=2, device="cpu", checkpoint_seconds=1e-6,
)  # fmt: skip


def teacher_parameters(values, folder, **more):
    return validate(TeacherParameters, values | {"run_dir": str(folder)} | more)


def distill_parameters(folder, **more):
    return validate(DistillParameters, TRAIN | {"run_dir": str(folder)} | more)


def batch(study, size=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *study.teacher.shape, generator=g)
    return x, torch.randint(1, 1001, (size,), generator=g), torch.arange(size) % study.teacher.num_classes


def trained(study, seeds=(0, 1), rank=2):
    """Students whose adapters are no longer zero."""
    students = LoRAStudents(study.network, seeds, rank)
    for p, g in zip(students.parameters(), range(10**6)):
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(g))
    return students
