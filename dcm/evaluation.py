"""Evaluation shared by the ODE-error and the quality notebooks: the same noise for teacher and students."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from dcm.artifacts import RowStore, fingerprint, read_tensors, write_tensors
from dcm.consistency import sample
from dcm.distill import Group, Member
from dcm.errors import InputError
from dcm.metrics import ode_error
from dcm.parameters import check_ends
from dcm.progress import tqdm
from dcm.random import generator, sample_noise
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students import Students
from dcm.studies import Study, solve_in_chunks


def method_name(horizon: int, intervals: int) -> str:
    """How a student is called: CM, Direct CM, or by its horizon."""
    return {1: "CM", intervals: "Direct CM"}.get(horizon, f"h = {horizon}")


@dataclass
class EvaluationSet:
    """Fixed noise and conditions, shared by the teacher and every student.

    Sample i has class i mod num_classes; its noise depends on (seed, i) alone.
    """

    study: Study
    run_dir: Path
    samples: int
    seed: int
    device: torch.device

    @property
    def home(self) -> torch.device:
        """Where noise and samples lie: of a costly study on the CPU, since a GPU that holds its networks is full."""
        return torch.device("cpu") if self.study.costly else self.device

    @cached_property
    def noise(self) -> Tensor:
        """Initial noise (B, *shape)."""
        return sample_noise(self.seed, "evaluation", range(self.samples), self.study.teacher.shape).to(self.home)

    @cached_property
    def condition(self) -> Tensor:
        """Classes (B,)."""
        return torch.arange(self.samples, device=self.home) % self.study.teacher.num_classes

    def fresh_noise(self, step: int) -> Tensor:
        """Fresh noise (B, *shape) of sampling step number `step` (1, 2, ..)."""
        shape = self.study.teacher.shape
        return sample_noise(self.seed, "renoise", range(self.samples), shape, step).to(self.home)

    def cached(self, name: str, make) -> Tensor:
        """A tensor kept in ``run_dir/evaluation``, made once per teacher and evaluation set."""
        key = fingerprint(self.study.teacher_id, self.samples, self.seed)
        path = self.run_dir / "evaluation" / f"{name}-{key}.safetensors"
        if not path.exists():
            write_tensors(path, {"x": make()})
        return read_tensors(path, self.home)[0]["x"]

    def teacher_samples(self, solver: str, intervals: int, guidance: float) -> Tensor:
        """The teacher's N-step solutions (B, *shape) from the noise."""
        grid, name = Grid(intervals, self.study.teacher.schedule.T), f"{solver}-{intervals}-{guidance:g}"

        def make(rows: slice = slice(None)) -> Tensor:
            x, c = (v[rows].to(self.device) for v in (self.noise, self.condition))
            return solve_in_chunks(self.study, x, c, guidance, solver, grid)

        if not self.study.costly:
            return self.cached(name, make)
        parts = [slice(i, i + self.study.chunk) for i in range(0, self.samples, self.study.chunk)]
        bar = tqdm(parts, desc=f"teacher's samples, {name}", unit="chunk", leave=False)
        return torch.cat([self.cached(f"{name}-parts/{rows.start:06d}", lambda: make(rows)) for rows in bar])

    def exact_samples(self, guidance: float) -> Tensor:
        """The PF-ODE's true solutions (B, *shape) from the noise, where they are known."""
        T = self.study.teacher.schedule.T
        return self.cached(
            f"exact-{guidance:g}", lambda: self.study.reference(self.noise, T, self.condition, guidance, Grid(T, T))
        )

    def student_samples(self, students: Students, intervals: int, steps: int, count: int | None = None) -> Tensor:
        """Samples (M, B, *shape) of every student in `steps` steps from the common noise, or the first `count`."""
        grid = Grid(intervals, self.study.teacher.schedule.T)
        fresh = [self.fresh_noise(k) for k in range(1, steps)]
        out = []
        count = min(self.samples, count or self.samples)
        for i in range(0, count, self.study.chunk):
            rows = slice(i, min(i + self.study.chunk, count))
            x, c, *again = (v[rows].to(self.device) for v in (self.noise, self.condition, *fresh))
            x, c = (v.expand(students.size, *v.shape) for v in (x, c))
            out.append(sample(self.study.f, students, x, c, grid, again).to(self.home))
        return torch.cat(out, 1)


@dataclass
class DistilledGroup:
    """A group of students as notebook 2 left it.

    Attributes
    ----------
    group : what was distilled. updates : the updates at which weights were kept, the last being the end.
    about : parameters, wall time in seconds and teacher evaluations.
    """

    name: str
    group: Group
    updates: list[int]
    about: dict
    path: Path
    tensors: dict[str, Tensor]

    @property
    def cost_an_update(self) -> dict[str, float]:
        """What one update of one student took: wall time in seconds and network evaluations.

        Seconds are those between the first and the last snapshot, which leaves out what starting takes (NaN where there
        is one snapshot alone). Evaluations are the teacher's, and of the student one for the target (unless that reaches data) and three for a forward and
        a backward pass.
        """
        reached, first, last = self.about.get("snapshot_seconds", {}), self.updates[0], self.updates[-1]
        known = reached and last > first
        seconds = (reached[str(last)] - reached[str(first)]) / (last - first) if known else float("nan")
        members, batch = self.group.members, self.about["parameters"]["batch"]
        own = sum(3 + (m.horizon < self.group.intervals) for m in members) * batch / len(members)
        return {
            "seconds": seconds / len(members),
            "evaluations": self.about["evaluations"] / last / len(members) + own,
        }

    def students(self, study: Study, update: int, device: torch.device) -> Students:
        """The students with their weights at `update`."""
        seeds = [m.seed for m in self.group.members]
        about = self.about["parameters"]
        students = study.make_students(seeds, about["width"], about.get("lora_rank", 0))
        prefix = f"{update}/"
        students.load_state_dict({k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)})
        return students.to(device).eval().requires_grad_(False)


def students_path(run_dir: str | Path, group: str) -> Path:
    """Where the students of a group lie."""
    return Path(run_dir) / "students" / f"{group}.safetensors"


def load_group(run_dir: str | Path, name: str) -> DistilledGroup:
    """A distilled group; raises :class:`InputError` when notebook 2 has not made it."""
    path = students_path(run_dir, name)
    if not path.exists():
        there = sorted(p.stem for p in path.parent.glob("*.safetensors") if not p.name.startswith("."))
        raise InputError(
            f"group {name!r} is not in {path.parent}; distil it with notebook 2 first; there: {', '.join(there) or 'none'}."
        )
    tensors, about = read_tensors(path)
    g = about["group"]
    group = Group(g["solver"], g["intervals"], tuple(g["guidance"]), tuple(g["horizons"]), tuple(g["seeds"]))
    return DistilledGroup(name, group, about["snapshots"], about, path, tensors)


def load_groups(run_dir: str | Path, names: Sequence[str], main: str) -> dict[str, DistilledGroup]:
    """Distilled groups by name; raises :class:`InputError` when one is missing or `main` lacks an end of the horizon."""
    loaded = {name: load_group(run_dir, name) for name in names}
    check_ends(main, asdict(loaded[main].group))
    return loaded


def describe(name: str, group: Group, member: Member, update: int, steps: int) -> dict:
    """The columns that identify one measured student."""
    return dict(
        group=name, solver=group.solver, intervals=group.intervals, guidance=member.guidance, horizon=member.horizon,
        method=method_name(member.horizon, group.intervals), seed=member.seed, update=update, steps=steps,
    )  # fmt: skip


KEY = ("fingerprint", "group", "guidance", "horizon", "seed", "update", "steps")
KEPT = 1 << 26  # bytes of one set of students' samples that are still worth their room on the disk


def _samples_of(evaluation: EvaluationSet, g: DistilledGroup, mark: str, update: int, steps: int) -> Tensor:
    """Samples (M, B, *shape) of a group's students; kept in ``run_dir/evaluation``, since two notebooks ask for them."""

    def make() -> Tensor:
        students = g.students(evaluation.study, update, evaluation.device)
        return evaluation.student_samples(students, g.group.intervals, steps)

    size = 4 * len(g.group.members) * evaluation.samples * math.prod(evaluation.study.teacher.shape)
    if evaluation.study.costly or size > KEPT:
        return make()
    return evaluation.cached(f"students-{g.name}-{update}-{steps}-{mark}", make)


def measure_students(
    study: Study,
    evaluation: EvaluationSet,
    groups: dict[str, list[int]],
    store: Path,
    measure,
    last_first: bool = False,
    workers: int = 1,
) -> Iterator[dict]:
    """One row for every student, snapshot and number of sampling steps; rows found in `store` are not made again.

    Parameters
    ----------
    groups : numbers of sampling steps to measure by name of group; snapshots before the end are measured in one step.
    store : where finished rows are kept. ``measure(x (B, *shape), group, member)`` returns the
    values of a row. last_first : begin at the end; two notebooks that run side by side, one from either end, then
    sample half of the students each and read the other half. workers : threads that call `measure`, which must allow
    it. Yields the rows in a fixed order.
    """
    rows = RowStore(store, KEY)
    work = []
    for name, steps in groups.items():
        g = load_group(evaluation.run_dir, name)
        mark = fingerprint(g.path, study.teacher_id, evaluation.samples, evaluation.seed)
        for update in g.updates:
            for k in steps if update == g.updates[-1] else [1]:
                if k <= g.group.intervals:
                    keys = [{"fingerprint": mark} | describe(name, g.group, m, update, k) for m in g.group.members]
                    work.append((g, mark, update, k, keys))

    def missing() -> Iterator[tuple]:  # sampled as they are asked for
        for g, mark, update, k, keys in tqdm(work[::-1] if last_first else work, desc="students measured", unit="set"):
            if not all(key in rows for key in keys):
                x = _samples_of(evaluation, g, mark, update, k)
                yield from (
                    (key, (x_m, g.group, member))
                    for x_m, key, member in zip(x, keys, g.group.members)
                    if key not in rows
                )

    for key, values in in_threads(lambda job: (job[0], measure(*job[1])), missing(), workers):
        rows.add(key | values)
    for *_, keys in work:
        for key in keys:
            yield {name: value for name, value in rows[key].items() if name != "fingerprint"}


def in_threads(function: Callable, items: Iterable, workers: int) -> Iterator:
    """``map(function, items)``, by `workers` threads where that is more than one; few items are taken ahead."""
    if workers == 1:
        yield from map(function, items)
        return
    begun: deque[Future] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > 2 * workers:
                yield begun.popleft().result()
        yield from (future.result() for future in begun)


def _ends(group: Group) -> list[int]:
    """Indices of the members at both ends of the horizon, at the group's first guidance scale."""
    return [
        i for i, m in enumerate(group.members)
        if m.guidance == group.guidance[0] and m.horizon in (1, group.intervals)
    ]  # fmt: skip


def noised_data(study: Study, seed: int, count: int, n: int, grid: Grid, device) -> tuple[Tensor, Tensor]:
    """Data noised to grid index n: x_{t_n} (B, *shape) and classes (B,); the same data and noise for every n."""
    x_0, condition = study.data.draw(generator(device, seed, "reference", 1), count)
    noise = sample_noise(seed, "reference", range(count), study.teacher.shape).to(device)
    return study.teacher.schedule.add_noise(x_0, noise, torch.full((count,), grid.time(n), device=device)), condition


@torch.no_grad()
def error_by_starting_time(
    study: Study, evaluation: EvaluationSet, distilled: DistilledGroup, start_times: int, start_samples: int
) -> Iterator[dict]:
    """One-step errors of CM and Direct CM from x_{t_n}, and the solver's own, for evenly spaced n (fig9).

    Yields rows with t and mean squared errors: student_error (student against the teacher's solution), solver_error
    (the teacher's solution against the reference) and total_error (student against the reference).
    """
    group, device = distilled.group, evaluation.device
    grid, w = Grid(group.intervals, study.teacher.schedule.T), group.guidance[0]
    students = distilled.students(study, distilled.updates[-1], device)
    indices = sorted({max(1, round(group.intervals * k / start_times)) for k in range(1, start_times + 1)})
    for n in tqdm(indices, desc="starting times", unit="time"):
        x, c = noised_data(study, evaluation.seed, start_samples, n, grid, device)
        solution = solve(study.teacher, x, n, c, w, group.solver, grid).x
        reference = study.reference(x, n, c, w, grid)
        t = torch.full(c.shape, grid.time(n), device=device)
        every = [v.expand(students.size, *v.shape) for v in (x, t, c)]
        answers = study.f(students, *every)
        for i in _ends(group):
            member = group.members[i]
            yield describe(distilled.name, group, member, distilled.updates[-1], 1) | {
                "t": grid.time(n),
                "student_error": ode_error(answers[i], solution),
                "solver_error": ode_error(solution, reference),
                "total_error": ode_error(answers[i], reference),
            }


def samples_to_show(
    study: Study, evaluation: EvaluationSet, distilled: DistilledGroup, steps: list[int], count: int = 1200
) -> dict[str, Tensor]:
    """Samples of the teacher and, of the first seed, of CM and Direct CM in each number of steps; same noise (fig2)."""
    group = distilled.group
    count = 64 if study.is_image else count  # more than a figure shows
    students = distilled.students(study, distilled.updates[-1], evaluation.device)
    out = {"teacher": evaluation.teacher_samples(group.solver, group.intervals, group.guidance[0])}
    first = [i for i in _ends(group) if group.members[i].seed == group.seeds[0]]
    by_steps = {
        k: evaluation.student_samples(students, group.intervals, k, count) for k in steps if k <= group.intervals
    }
    for i in first:
        for k, x in by_steps.items():
            out[f"{method_name(group.members[i].horizon, group.intervals)}, {k} step{'s' * (k > 1)}"] = x[i]
    return {label: x[:count] for label, x in out.items()}


@torch.no_grad()
def targets_to_show(
    study: Study, device: torch.device, distilled: DistilledGroup, count: int = 7
) -> tuple[Tensor, int, dict[str, tuple[Tensor, Tensor]]]:
    """Teacher trajectories from x_{t_n} and what CM and Direct CM regress on there (fig1).

    Returns (paths (n + 1, B, *shape), n, {method: (x_hat, target)}), with the first seed's distilled students.
    """
    group = distilled.group
    grid, w = Grid(group.intervals, study.teacher.schedule.T), group.guidance[0]
    n = max(1, round(0.8 * group.intervals))
    x, c = noised_data(study, 0, 12 if study.is_image else count, n, grid, device)
    paths = solve(study.teacher, x, n, c, w, group.solver, grid, trajectory=True).trajectory
    students = distilled.students(study, distilled.updates[-1], device)
    targets = {}
    for i in _ends(group):
        member = group.members[i]
        if member.seed == group.seeds[0]:
            h = min(member.horizon, n)
            x_hat, t_hat = paths[h], torch.full(c.shape, grid.time(n - h), device=device)
            answer = study.f(students, x_hat[None], t_hat[None], c[None], members=slice(i, i + 1))[0]
            targets[method_name(member.horizon, group.intervals)] = (x_hat, answer)
    return paths, n, targets
