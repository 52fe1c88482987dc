"""The exact teacher on a Gaussian mixture."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.metrics.mixture import MixtureQuality
from dcm.schedule import Grid
from dcm.students.lockstep import MLPStudents
from dcm.studies.base import Study, teacher_record
from dcm.support.files import fingerprint, kept_tensors, write_json
from dcm.support.progress import tqdm
from dcm.support.seeds import generator
from dcm.teachers.mixture import GaussianMixtureTeacher, exact_solution


def prepare(p, run_dir: Path, device: torch.device) -> None:
    """Notebook 1's work: note which mixture it is. `p` : :class:`dcm.parameters.notebooks.TeacherParameters`."""
    write_json(run_dir / "teacher/teacher.json", p.model_dump(include={"study", "dimension", "modes"}))


class MixtureStudy(Study):
    """Multilayer perceptrons as students of the mixture that notebook 1 noted in `run_dir`, before that the study's own."""

    def __init__(self, name: str, run_dir: Path, device: torch.device):
        about, self.run_dir = teacher_record(run_dir) or {}, run_dir
        mixture = about.get("dimension", 2), about.get("modes", 3)
        teacher = GaussianMixtureTeacher.of(*mixture)
        super().__init__(
            name, teacher, teacher, MixtureQuality(teacher), ConsistencyFunction(teacher.schedule), chunk=1 << 16,
            exact=True, teacher_id="interleaved_ring" if mixture == (2, 3) else "mixture-{}-{}".format(*mixture),
        )  # fmt: skip

    def make_students(self, seeds: Sequence[int], width: int, lora_rank: int = 0) -> MLPStudents:
        """Multilayer perceptrons with 3 hidden layers of `width`; there is no teacher's network to adapt."""
        return MLPStudents(seeds, self.teacher.shape[0], self.teacher.num_classes, self.teacher.schedule.T, width)

    def start_from_teacher(self, students: MLPStudents, seeds: Sequence[int], updates: int) -> None:
        """Fit the teacher's (unguided, conditional) v-prediction for `updates` updates of 256; 0 leaves them fresh.

        The exact teacher is no network to copy. Students of one seed start equal, so one fit a seed is enough.
        """
        if updates == 0:
            return
        unique, device = list(dict.fromkeys(seeds)), next(students.parameters()).device
        mark = fingerprint(self.teacher_id, unique, students.width, updates, device.type)
        fitted = lambda: self._fitted(unique, students.width, updates, device)
        if self.run_dir.exists():  # its groups start alike, so that the first one's fit serves all
            fitted = partial(kept_tensors, self.run_dir / f"starts/{mark}.safetensors", mark, fitted, device)
        which = torch.tensor([unique.index(s) for s in seeds], device=device)
        students.load_state_dict({name: value[which] for name, value in fitted().items()})

    def _fitted(self, seeds: Sequence[int], width: int, updates: int, device: torch.device) -> dict[str, Tensor]:
        """Weights of one student a seed, fitted to the teacher."""
        schedule, fitted = self.teacher.schedule, self.make_students(seeds, width).to(device)
        optimizer = torch.optim.AdamW(fitted.parameters(), lr=2e-3, weight_decay=1e-4, fused=device.type in ("cpu", "cuda"))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: min(1.0, 2 * (1 - u / updates)))
        for update in tqdm(range(updates), desc="start from the teacher", unit="update"):
            rows = []
            for seed in seeds:
                g = generator(device, seed, "teacher", update)
                x_0, c = self.teacher.draw(g, 256)
                t = torch.randint(1, schedule.T + 1, (256,), generator=g, device=device)
                x = schedule.add_noise(x_0, torch.randn(x_0.shape, generator=g, device=device), t)
                # v = alpha eps - sigma x0_hat with x0_hat = (x - sigma eps) / alpha
                v = (self.teacher.predict_noise(x, t, c) - schedule.sigma(t, x) * x) / schedule.alpha(t, x)
                rows.append((x, t, c, v))
            x, t, c, v = (torch.stack(column) for column in zip(*rows))
            optimizer.zero_grad(set_to_none=True)
            (fitted(x, t, c) - v).square().flatten(1).mean(1).sum().backward()
            fitted.clip_gradients(1.0)
            optimizer.step()
            decay.step()
        return fitted.state_dict()

    def reference(self, x: Tensor, n: int, condition: Tensor, guidance: float, grid: Grid) -> Tensor:
        """True solution to about 1e-8, in float64."""
        return exact_solution(self.teacher, x, grid.time(n), condition, guidance)
