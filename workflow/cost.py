"""What a group of students costs to distil, for Snakemake to begin with the costliest."""

from dcm.parameters.notebooks import DistillParameters
from dcm.parameters.study import StudyConfig
from dcm.solvers import SOLVERS


def cost(p: DistillParameters) -> float:
    """Network evaluations, of which a pass of a student counts as four, and one of images as hundreds of points."""
    longest = [max(p.group().stage(u, 20).horizons) for u in range(1, 21)]
    steps = sum(min(n, h) for n in range(1, p.intervals + 1) for h in longest) / p.intervals / len(longest)
    if p.pairs_per_trajectory > 1:
        steps = p.intervals / p.pairs_per_trajectory
    solves = 2 * steps * SOLVERS[p.solver].evaluations  # both halves of the guidance
    scale = 1 if p.study == "gmm" else 300
    return scale * p.updates * p.batch * len(p.guidance) * len(p.seeds) * (solves + 4 * len(p.horizons))


def costliest_last(studies: list[StudyConfig]) -> list[tuple[str, str]]:
    """Run folders and groups of `studies` in the order of their :func:`cost`."""
    each = [(study.run_dir, name, DistillParameters(**study.notebook("2_distill", name))) for study in studies for name in study.groups]
    return [(run, name) for run, name, _ in sorted(each, key=lambda group: cost(group[2]))]
