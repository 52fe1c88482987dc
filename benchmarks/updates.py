"""CM updates a second: as diffusers' LCM distillation example writes the update, and ours.

    python benchmarks/updates.py digits|cifar10 [--batch 256] [--intervals 50] [--guidance 2] [--out FILE]

The baseline is the update of diffusers' examples/consistency_distillation/train_lcm_distill_sdxl_wds.py, line by line but
for what names SDXL: the network is this study's UNet and predicts v, a class takes the prompt's place, and w is one
number, of which the student is not told. It is timed with the example's target network (an average of the student) and
with the student itself as target, as the LoRA example and the paper have it; the latter is what ours is compared with.
Both ways start as the teacher, in one process, on images of noise (speed does not depend on them).

Training overhead: the time of an update of ours beyond that of the teacher's and the student's passes alone.
"""

import argparse
import copy

import torch
import torch.nn.functional as F
from report import GIB, Report, timed
from targets import make_teacher
from torch import Tensor

from dcm.consistency import ConsistencyFunction
from dcm.horizon import Group, distance, horizon_target
from dcm.pairs import Pairs
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.solvers_in_flight import Stepper
from dcm.students.lockstep import ModuleStudents
from dcm.students.networks import UNetStudent
from dcm.support.processes import find_device, ready_device
from dcm.training.loop import distill
from dcm.training.settings import Settings


def extract_into_tensor(a: Tensor, t: Tensor, shape) -> Tensor:
    """The example's: a[t], shaped to broadcast."""
    return a.gather(-1, t).reshape(len(t), *((1,) * (len(shape) - 1)))


class DDIMSolver:
    """The example's, on the grid of its ``num_ddim_timesteps`` = N."""

    def __init__(self, alpha_cumprods: Tensor, timesteps: int, N: int):
        step = timesteps // N
        self.ddim_timesteps = (torch.arange(1, N + 1) * step).round().long() - 1
        self.ddim_alpha_cumprods = alpha_cumprods[self.ddim_timesteps]
        self.ddim_alpha_cumprods_prev = torch.cat([alpha_cumprods[:1], alpha_cumprods[self.ddim_timesteps[:-1]]])

    def to(self, device):
        for name, value in list(vars(self).items()):
            setattr(self, name, value.to(device))
        return self

    def ddim_step(self, pred_x0: Tensor, pred_noise: Tensor, index: Tensor) -> Tensor:
        alpha_cumprod_prev = extract_into_tensor(self.ddim_alpha_cumprods_prev, index, pred_x0.shape)
        return alpha_cumprod_prev.sqrt() * pred_x0 + (1.0 - alpha_cumprod_prev).sqrt() * pred_noise


def scalings_for_boundary_conditions(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0):
    scaled = timestep_scaling * t
    c_skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    return c_skip, scaled / (scaled**2 + sigma_data**2) ** 0.5


def append_dims(x: Tensor, dims: int) -> Tensor:
    return x[(...,) + (None,) * (dims - x.ndim)]


@torch.no_grad()
def update_ema(target_params, source_params, rate: float = 0.95) -> None:
    for target, source in zip(target_params, source_params):
        target.detach().mul_(rate).add_(source, alpha=1 - rate)


class Example:
    """The example's training loop; :meth:`update` is its body, the progress bar's loss included."""

    def __init__(self, teacher, data, w: float, batch: int, N: int, device: torch.device, averaged: bool):
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler

        gpu = device.type == "cuda"
        self.accelerator = Accelerator(mixed_precision="bf16" if gpu else "no", cpu=not gpu)
        config = teacher.config
        self.noise_scheduler = DDPMScheduler(
            config.timesteps, config.beta_start, config.beta_end, beta_schedule="scaled_linear"
        )
        alphas_cumprod = self.noise_scheduler.alphas_cumprod.to(device)
        self.alpha_schedule, self.sigma_schedule = alphas_cumprod.sqrt(), (1.0 - alphas_cumprod).sqrt()
        self.solver = DDIMSolver(self.noise_scheduler.alphas_cumprod, config.timesteps, N).to(device)
        self.data, self.batch, self.N, self.w, self.device = data, batch, N, w, device
        self.null, self.topk = teacher.num_classes, config.timesteps // N
        self.teacher_unet = copy.deepcopy(teacher.unet).requires_grad_(False).to(memory_format=torch.contiguous_format)
        unet = copy.deepcopy(self.teacher_unet).requires_grad_(True).train()
        self.target_unet = copy.deepcopy(self.teacher_unet).train() if averaged else None
        optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        scheduler = get_scheduler("constant_with_warmup", optimizer=optimizer, num_warmup_steps=1)
        self.unet, self.optimizer, self.lr_scheduler = self.accelerator.prepare(unet, optimizer, scheduler)
        self.generator = torch.Generator(device).manual_seed(0)
        self.logs: dict[str, float] = {}

    def _original(self, output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        alphas = extract_into_tensor(self.alpha_schedule, timesteps, sample.shape)
        sigmas = extract_into_tensor(self.sigma_schedule, timesteps, sample.shape)
        return alphas * sample - sigmas * output  # the example's get_predicted_original_sample, v_prediction

    def _noise(self, output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        alphas = extract_into_tensor(self.alpha_schedule, timesteps, sample.shape)
        sigmas = extract_into_tensor(self.sigma_schedule, timesteps, sample.shape)
        return alphas * output + sigmas * sample  # get_predicted_noise, v_prediction

    def update(self) -> None:
        """One update."""
        with self.accelerator.accumulate(self.unet):
            latents, labels = self.data.draw(self.generator, self.batch)
            noise = torch.randn_like(latents)
            bsz = latents.shape[0]
            index = torch.randint(0, self.N, (bsz,), device=latents.device).long()
            start_timesteps = self.solver.ddim_timesteps[index]
            timesteps = start_timesteps - self.topk
            timesteps = torch.where(timesteps < 0, torch.zeros_like(timesteps), timesteps)
            c_skip_start, c_out_start = (
                append_dims(c, latents.ndim) for c in scalings_for_boundary_conditions(start_timesteps)
            )
            c_skip, c_out = (append_dims(c, latents.ndim) for c in scalings_for_boundary_conditions(timesteps))
            noisy = self.noise_scheduler.add_noise(latents, noise, start_timesteps)
            w = torch.full((bsz,), self.w - 1, device=latents.device).reshape(bsz, 1, 1, 1)  # of the original form

            output = self.unet(noisy, start_timesteps, class_labels=labels).sample
            model_pred = c_skip_start * noisy + c_out_start * self._original(output, start_timesteps, noisy)

            with torch.no_grad(), self.accelerator.autocast():
                cond = self.teacher_unet(noisy, start_timesteps, class_labels=labels).sample
                cond_x0 = self._original(cond, start_timesteps, noisy)
                cond_noise = self._noise(cond, start_timesteps, noisy)
                uncond = self.teacher_unet(
                    noisy, start_timesteps, class_labels=torch.full_like(labels, self.null)
                ).sample
                uncond_x0 = self._original(uncond, start_timesteps, noisy)
                uncond_noise = self._noise(uncond, start_timesteps, noisy)
                pred_x0 = cond_x0 + w * (cond_x0 - uncond_x0)
                pred_noise = cond_noise + w * (cond_noise - uncond_noise)
                x_prev = self.solver.ddim_step(pred_x0, pred_noise, index)

            with torch.no_grad(), self.accelerator.autocast():
                own = self.unet if self.target_unet is None else self.target_unet
                output = own(x_prev.float(), timesteps, class_labels=labels).sample
                target = c_skip * x_prev + c_out * self._original(output, timesteps, x_prev)

            loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad(set_to_none=True)
        if self.accelerator.sync_gradients and self.target_unet is not None:
            update_ema(self.target_unet.parameters(), self.unet.parameters())
        self.logs = {"loss": loss.detach().item(), "lr": self.lr_scheduler.get_last_lr()[0]}


def make_students(teacher, count: int = 1) -> ModuleStudents:
    """Students that start as the teacher."""
    networks = [UNetStudent(teacher.config) for _ in range(count)]
    for network in networks:
        network.unet.load_state_dict(teacher.unet.state_dict())
        network.autocast = teacher.autocast
        if network.autocast:
            network.unet.to(memory_format=torch.channels_last)
    return ModuleStudents(networks)


def replayed(device: torch.device, do):
    """`do` as one CUDA graph on a GPU, so that its passes cost what the GPU needs for them; itself elsewhere."""
    if device.type != "cuda":
        return do
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            do()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        do()
    return graph.replay


def main() -> None:
    """Measure both ways and the passes alone."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("study", choices=("digits", "cifar10"))
    arguments.add_argument("--batch", type=int, default=256)
    arguments.add_argument("--intervals", type=int, default=50)
    arguments.add_argument("--guidance", type=float, default=2.0)
    arguments.add_argument("--seconds", type=float, default=5.0, help="to time each way for")
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--out")
    given = arguments.parse_args()
    B, N, w = given.batch, given.intervals, given.guidance
    device = find_device(given.device)
    ready_device(device, threads=1)
    report = Report(device, given.out, study=given.study, batch=B, N=N, w=w, solver="ddim")
    teacher, data = make_teacher(given.study, device)
    gpu = device.type == "cuda"
    grid, group, f = Grid(N), Group("ddim", N, (w,), (1,), (0,)), ConsistencyFunction(teacher.schedule)
    # On a GPU a CM's solves, one step each, fill `batch` slots at once: one compiled shape, one graph.
    settings = Settings(updates=10**6, lr=1e-6)
    pairs = Pairs(teacher, data, group, B, device, solves_in_flight=B if gpu else 0)

    def rate(name: str, do, warm_up: int, whole: bool = True) -> tuple[float, float] | None:
        """Seconds of one call, a whole update or a part of one, and their spread."""
        with report.way(name):
            for _ in range(warm_up):
                do()
            if gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            each, calls, spread = timed(device, do, given.seconds)
            row = {"way": name} | ({"updates a second": 1 / each} if whole else {})
            row |= {"ms": 1e3 * each, "spread [ms]": 1e3 * spread, "calls": calls}
            if gpu:
                row["peak memory [GiB]"] = torch.cuda.max_memory_allocated() / GIB
            report.add(row)
            return each, spread
        return None

    def example(averaged: bool):
        return Example(teacher, data, w, B, N, device, averaged).update

    rate("diffusers' example, target: the student", example(False), 3)
    rate("diffusers' example, target: an average", example(True), 3)

    students = make_students(teacher).to(device)
    states = distill(pairs, students, settings, f)
    update = rate("ours", lambda: next(states), 8)

    # The passes alone, on one update's draws.
    students = make_students(teacher).to(device)
    starts = pairs.starts(1)
    stepper = Stepper(teacher, starts, "ddim", grid, B)
    solved = solve(teacher, starts.x, starts.n, starts.condition, w, "ddim", grid, 1, (1,))
    batch = pairs.batch_of(1, starts, solved.at, solved.evaluations)

    @torch.no_grad()
    def solving() -> None:
        stepper.x.copy_(starts.x)
        stepper.n.copy_(n)
        stepper.step()

    def passes() -> None:
        target = horizon_target(f, students, batch)
        own = f(students, batch.x, batch.t, batch.condition)
        students.zero_grad(set_to_none=True)
        students.backward(distance(own, target, "l2"), slice(None))

    n = starts.n.to(device)
    stepper.condition.copy_(starts.condition)
    if isinstance(stepper.guidance, Tensor):
        stepper.guidance.fill_(w)
    teachers = rate("the teacher's pass alone", solving, 5, whole=False)
    own = None
    with report.way("the student's passes alone"):
        own = rate("the student's passes alone", replayed(device, passes), 3, whole=False)
    if update and teachers and own:
        beyond = update[0] - teachers[0] - own[0]
        spread = (update[1] ** 2 + teachers[1] ** 2 + own[1] ** 2) ** 0.5
        report.add({"way": "overhead of ours", "ms": 1e3 * beyond, "spread [ms]": 1e3 * spread,
                    "share of an update": beyond / update[0]})  # fmt: skip
    report.print()


if __name__ == "__main__":
    main()
