"""What a group of students costs to distil, for Snakemake to begin with the costliest."""

from dcm.parameters.notebooks import DistillParameters
from dcm.parameters.study import StudyConfig
from dcm.solvers import SOLVERS


def cost(p: DistillParameters) -> float:
    """Network evaluations, of which a pass of a student counts as four."""
    longest = [max(p.group().stage(u, 20).horizons) for u in range(1, 21)]
    steps = sum(min(n, h) for n in range(1, p.intervals + 1) for h in longest) / p.intervals / len(longest)
    if p.pairs_per_trajectory > 1:
        steps = p.intervals / p.pairs_per_trajectory
    solves = 2 * steps * SOLVERS[p.solver].evaluations  # both halves of the guidance
    return p.updates * p.batch * len(p.guidance) * len(p.seeds) * (solves + 4 * len(p.horizons))


def costliest_last(study: StudyConfig) -> list[str]:
    """Names of the groups in the order of their :func:`cost`."""
    return sorted(study.groups, key=lambda name: cost(DistillParameters(**study.notebook("2_distill", name))))
