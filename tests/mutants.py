"""Do the unit tests see a mistake? `python tests/mutants.py` makes one at a time, and writes docs/mutants.md.

Each mutant is one changed line of the core in a temporary copy of the repository. The tests that are named with it are
run there, one process each: a mutant is killed when one of them fails, and survives when all pass. The process ends with
1 when one survived, or when the tests fail without a mutant.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("dcm", "tests", "docs", "weights", "benchmarks", "workflow", "pyproject.toml")
LONGEST = 60  # seconds of processor time of one mutant's tests; a mutant that takes longer is killed
SOLVERS, HORIZON, FLIGHT = ("tests/test_solvers.py",), ("tests/test_horizon.py",), ("tests/test_solvers_in_flight.py",)
SETTINGS, MEASURED = ("tests/training/test_settings_and_averages.py",), ("tests/metrics/test_measured_on_what.py",)
MIXTURE = ("tests/metrics/test_mixture_quality.py",)


@dataclass(frozen=True)
class Mutant:
    """In `file`, the text `old`, which is there once, becomes `new`; `tests` are the files that should see it."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def made(self, root: Path) -> str:
        """The changed source; ends the program when `old` is not there exactly once."""
        source = (root / self.file).read_text()
        if (count := source.count(self.old)) != 1:
            raise SystemExit(
                f"{self.file} has {self.old!r} {count} times, not once: bring tests/mutants.py up to date."
            )
        return source.replace(self.old, self.new)


MUTANTS = [
    Mutant("dcm/schedule.py", "np.sqrt(1 - alpha_bar)", "1 - alpha_bar", SOLVERS),
    Mutant("dcm/schedule.py", "[self.rate[:1], self.rate]", "[self.rate, self.rate[-1:]]", SOLVERS),
    Mutant("dcm/schedule.py", "self.intervals, steps, endpoint=False", "self.intervals, steps, endpoint=True", SOLVERS),
    Mutant("dcm/teacher.py", "return eps_null + w *", "return eps_cond + w *", ("tests/test_teacher.py",)),
    Mutant("dcm/schedule.py", "+ self.sigma(s, x) * eps", "+ self.sigma(t, x) * eps", SOLVERS),
    Mutant("dcm/further_solvers.py", "(eps + there) / 2", "there", SOLVERS),
    Mutant("dcm/further_solvers.py", "* h / (2 * (", "* h / (3 * (", SOLVERS),
    Mutant("dcm/schedule.py", "if name == \"alpha\" else -log_snr", "if name == \"sigma\" else -log_snr", SOLVERS),
    Mutant("dcm/solvers.py", "t = t.clamp(min=1)", "t = t.clamp(min=2)", SOLVERS),
    Mutant("dcm/solvers.py", "x + h * slope, s)", "x + h / 2 * slope, s)", SOLVERS),
    Mutant("dcm/solvers.py", "n.clamp(max=steps)", "n.clamp(max=steps + 1)", SOLVERS),
    Mutant("dcm/solvers.py", "sum(moving) * calls", "len(n) * len(moving) * calls", SOLVERS),
    Mutant("dcm/consistency.py", "timestep_scaling: float = 10.0", "timestep_scaling: float = 1.0", HORIZON),
    Mutant("dcm/consistency.py", "kt / scale.sqrt()", "kt / scale", HORIZON),
    Mutant("dcm/consistency.py", "alpha * x - sigma * output", "alpha * x + sigma * output", HORIZON),
    Mutant("dcm/consistency.py", "fresh_noise[k - 1].expand_as(x)", "noise.expand_as(x)", HORIZON),
    Mutant("dcm/horizon.py", "batch.t_hat[some]", "batch.t[some]", HORIZON),
    Mutant("dcm/horizon.py", "@torch.no_grad()\ndef horizon_target", "def horizon_target", HORIZON),
    Mutant("dcm/horizon.py", "short = [h < group.intervals", "short = [h == 1", HORIZON),
    Mutant("dcm/horizon.py", "past.index(own)", "horizons.index(own[-1])", HORIZON),
    Mutant("dcm/training/loop.py", "students.follow(who, whom, optimizer)", "pass", HORIZON),
    Mutant("dcm/horizon.py", "difference.square().flatten(1)", "difference.abs().flatten(1)", HORIZON),
    Mutant("dcm/pairs.py", "torch.randint(1, grid.intervals + 1", "torch.randint(1, grid.intervals", HORIZON),
    Mutant("dcm/pairs.py", 'generator(device, seed, "noise", update)', 'generator(device, seed, "data", update)', HORIZON),
    Mutant("dcm/pairs.py", "grid.time((n - h).clamp(min=0))", "grid.time((n - h).clamp(min=1))", HORIZON),
    Mutant("dcm/pairs.py", ".repeat_interleave(len(x) // W)", ".repeat(len(x) // W)", HORIZON),
    Mutant("dcm/solvers_in_flight.py", "self.taken[slots] = odes, 0", "self.taken[slots] = odes, 1", FLIGHT),
    Mutant("dcm/solvers_in_flight.py", "stepper.x[stepper.rows.stop :] = ", "", FLIGHT),
    Mutant("dcm/solvers_in_flight.py", "processes.rows(own * processes.size)", "slice(own * processes.size)", FLIGHT),
    Mutant("dcm/pairs.py", "unflatten(0, (M, -1))[:, rows]", "unflatten(0, (M, -1))", FLIGHT),
    Mutant("dcm/training/settings.py", "2 * (1 - (update", "1 * (1 - (update", SETTINGS),
    Mutant("dcm/training/settings.py", "weight_decay=settings.weight_decay, fused", "weight_decay=0.0, fused", SETTINGS),
    Mutant("dcm/training/update.py", "self.students.clip_gradients(self.settings.max_norm)", "pass", SETTINGS),
    Mutant("dcm/training/update.py", "target[at], self.settings.loss)", 'target[at], "l2")', SETTINGS),
    Mutant("dcm/training/update.py", " * (own.shape[1] / size)", "", ("tests/studies/sdxl/test_sdxl_students.py",)),
    Mutant("dcm/teachers/frozen.py", "ROOM * x.abs().amax()", "x.abs().amax()", ("tests/teachers/test_frozen.py",)),
    Mutant("dcm/evaluation/students.py", "[processes.rank :: processes.size]", "[:]", ("tests/studies/sdxl/test_sdxl_training.py",)),
    Mutant("dcm/evaluation/share.py", "if any(key not in rows", "if any(True", ("tests/studies/sdxl/test_sdxl_training.py",)),
    Mutant("dcm/evaluation/shown.py", ".amin((0, 2))", ".amax((0, 2))", ("tests/evaluation/test_evaluation.py",)),
    Mutant("dcm/training/run.py", "            self.average(state.restarted)\n", "", SETTINGS),
    Mutant("dcm/training/run.py", "self.students.state_dict() | self.averaged", "self.students.state_dict()", SETTINGS),
    Mutant("dcm/training/run.py", "(self.loss_sum / self.window)", "self.loss_sum", SETTINGS),
    Mutant("dcm/metrics/metric.py", ".square().mean()", ".abs().mean()", MIXTURE),
    Mutant("dcm/metrics/mixture.py", "(sliced_wasserstein, teacher, 0)", "(sliced_wasserstein, data, 0)", MIXTURE),
    Mutant("dcm/metrics/mixture.py", "< self.near", "< 2 * self.near", MIXTURE),
    Mutant("dcm/metrics/images.py", "self.classifier.classify(x)", "self.classifier.classify(teacher_x)", MEASURED),
    Mutant("dcm/metrics/images.py", "precision_recall(own, teacher)", "precision_recall(teacher, own)", MEASURED),
    Mutant("dcm/metrics/images.py", "frechet(own, self._kept(self.real)[i])", "frechet(own, teacher)", MEASURED),
    Mutant("dcm/metrics/images.py", "paired_error(own, teacher)", "frechet(own, teacher)", MEASURED),
    Mutant("dcm/metrics/distances.py", "kthvalue(NEIGHBOURS + 1)", "kthvalue(NEIGHBOURS)", MEASURED),
    Mutant("dcm/metrics/distances.py", "square().sum(1).mean()", "square().mean()", MEASURED),
    Mutant("dcm/metrics/distances.py", "float(k.sum() - k.diagonal(i).sum())", "float(k.sum())", MEASURED),
]  # fmt: skip


def passes(copy: Path, tests: tuple[str, ...], shown: bool = False) -> bool:
    """Whether `tests` pass in `copy`, in a process that is forked from this one: large libraries are loaded by now."""
    child = os.fork()
    if child == 0:
        if not shown:
            resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1), os.dup2(silence, 2)
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tests"), str(copy / "benchmarks"), str(copy / "weights")]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests])))
    return os.waitpid(child, 0)[1] == 0


def table(rows: list[tuple[Mutant, bool]]) -> str:
    """docs/mutants.md."""
    cell = lambda text: "`" + " ".join(text.replace("|", "\\|").split()) + "`" if text.strip() else "(nothing)"
    killed = sum(dead for _, dead in rows)
    text = [
        "# Mutants", "Written by `make mutants` (`tests/mutants.py`): one line of the core is changed at a time, and the unit "
        "tests named beside it are run. Killed: a test fails, as it should. Survived: no test sees it.",
        f"**{killed} of {len(rows)} killed.**",
        "\n".join(["| file | line | becomes | tests | |", "| --- | --- | --- | --- | --- |"] + [
            f"| {m.file} | {cell(m.old)} | {cell(m.new)} | {', '.join(Path(t).stem for t in m.tests)} | "
            f"{'killed' if dead else '**survived**'} |" for m, dead in rows
        ]),
    ]  # fmt: skip
    return "\n\n".join(text) + "\n"


def main() -> int:
    """Run all mutants, or those whose file or line contains a word; the table is written for all of them alone."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("only", nargs="?", default="", help="a word in the file or in the line")
    only = arguments.parse_args().only
    chosen = [m for m in MUTANTS if only in m.file + m.old]
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, copy / name)
        for m in chosen:
            m.made(copy)  # all of them are up to date
        every = tuple(sorted({test for m in chosen for test in m.tests}))
        if not passes(copy, every, shown=True):
            raise SystemExit("The tests fail without a mutant: mend them first.")
        for m in chosen:
            original, changed = (copy / m.file).read_text(), m.made(copy)
            (copy / m.file).write_text(changed)
            rows.append((m, not passes(copy, m.tests)))
            (copy / m.file).write_text(original)
            at = f"[{time.monotonic() - began:.0f} s]"
            print(at, "killed  " if rows[-1][1] else "SURVIVED", m.file, repr(m.old), "->", repr(m.new), flush=True)
    killed = sum(dead for _, dead in rows)
    print(f"{killed} of {len(rows)} killed")
    if not only:
        (ROOT / "docs/mutants.md").write_text(table(rows))
    return int(killed < len(rows))


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import diffusers  # noqa: F401
    import pandas  # noqa: F401
    import pytest
    import scipy.integrate  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
