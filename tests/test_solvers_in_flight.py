from types import SimpleNamespace

import numpy as np
import pytest
import torch
from interruption import interrupted_at
from scipy.stats import chisquare
from test_horizon import students_of
from training.test_run import CPU, parameters, study  # noqa: F401

from dcm.horizon import Group
from dcm.pairs import Pairs
from dcm.schedule import Grid
from dcm.solvers import SOLVERS, solve
from dcm.solvers_in_flight import Starts, solve_in_flight
from dcm.support.errors import InputError
from dcm.support.processes import Processes
from dcm.support.seeds import sample_noise
from dcm.training.loop import distill
from dcm.training.run import train_group
from dcm.training.settings import Settings


def starts(count, size, guidance=2.0, intervals=10, seed=0):
    g = torch.Generator().manual_seed(seed)
    for k in range(count):
        x = sample_noise(seed, "evaluation", range(k * size, (k + 1) * size), (2,)).double()
        w = torch.rand(size, generator=g).double() * 4 if guidance is None else guidance
        yield Starts(x, torch.randint(1, intervals + 1, (size,), generator=g), torch.arange(size) % 4, w)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", [1, 3.0, None])
@pytest.mark.parametrize("slots", [1, 7, 40])
def test_solutions_are_those_of_plain_solving(teacher, solver, guidance, slots):
    """Every group, in order, at every horizon, whatever the number of slots."""
    grid, horizons = Grid(10), (1, 4, 10)
    problems = list(starts(5, 12, guidance))
    found = list(solve_in_flight(teacher, iter(problems), solver, grid, slots, horizons))
    assert len(found) == len(problems)
    for s, solution in zip(problems, found):
        plain = solve(teacher, s.x, s.n, s.condition, s.guidance, solver, grid, 10, horizons)
        for h in horizons:
            assert torch.allclose(solution.at[h], plain.at[h], atol=1e-9), (solver, h)
        assert torch.equal(solution.n, plain.n)


def two():
    """Each of two processes, which send each other nothing."""
    for rank in (0, 1):
        yield Processes(SimpleNamespace(process_index=rank, num_processes=2, reduce=lambda own, how: own))


@pytest.mark.parametrize(("slots", "reuse"), [(0, 1), (0, 2), (4, 1)])
def test_each_process_trains_on_its_own_rows(teacher, slots, reuse):
    """Of every guidance scale and seed; together they have the batch."""
    group = Group("ddim", 10, (1.0, 3.0), (1, 10), (0, 1))
    of = lambda *team: Pairs(teacher, teacher, group, 8, "cpu", 2, slots, reuse, *team).between(0, 2)
    for (_, whole), (_, one), (_, other) in zip(of(), *map(of, two()), strict=True):
        for name in ("x", "t", "condition", "t_hat") if slots else ("x", "t", "condition", "t_hat", "x_hat"):
            assert torch.allclose(getattr(whole, name), torch.cat([getattr(one, name), getattr(other, name)], 1), atol=1e-6), name
        assert slots or one.evaluations + other.evaluations == whole.evaluations


@pytest.mark.parametrize("guidance", [3.0, None])
def test_processes_share_one_queue_of_solves(teacher, guidance):
    """What one of two has solved and what the other has add up to the solutions; both take equally many steps."""
    problems = list(starts(20, 12, guidance))
    found = [list(solve_in_flight(teacher, iter(problems), "ddim", Grid(10), 4, (1, 10), team)) for team in two()]
    spent = 0
    for s, one, other in zip(problems, *found, strict=True):
        plain = solve(teacher, s.x, s.n, s.condition, s.guidance, "ddim", Grid(10), 10, (1, 10))
        assert all(torch.allclose(one.at[h] + other.at[h], plain.at[h], atol=1e-9) for h in (1, 10))
        assert one.evaluations == other.evaluations
        spent += one.evaluations
    shares = [sum(int(x.any(1).sum()) for x in (s.at[10] for s in own)) for own in found]
    assert min(shares) > 100 and sum(shares) == 240  # both solve about half
    needed = sum(int(s.n.sum()) for s in problems)  # of both: two evaluations a step
    assert needed <= spent < 1.05 * needed


def test_a_short_horizon_ends_early(teacher):
    [s] = starts(1, 12)
    [found] = solve_in_flight(teacher, iter([s]), "ddim", Grid(10), 12, (1, 3))
    plain = solve(teacher, s.x, s.n, s.condition, 2.0, "ddim", Grid(10), 3)
    assert torch.allclose(found.x, plain.x, atol=1e-9) and torch.equal(found.n, plain.n)
    assert found.evaluations == 12 * 3 * 2


def test_few_evaluations_are_wasted(teacher):
    """At most 2 % over the minimum, emptying the slots at the end included."""
    problems = list(starts(260, 64, intervals=50))
    spent = sum(s.evaluations for s in solve_in_flight(teacher, iter(problems), "ddim", Grid(50), 64, (50,)))
    needed = 2 * sum(int(s.n.sum()) for s in problems)
    assert needed < spent < 1.02 * needed


def test_no_bias_towards_short_solves(teacher):
    """Short solves finish first; the pairs handed out do not show it, neither at the start nor at the end of a run."""
    group = Group("ddim", 10, (2.0,), (1, 10), tuple(range(40)))
    made = Pairs(teacher, teacher, group, 8, solves_in_flight=16).between(0, 6)
    pairs = {update: batch.t[0:40].flatten() for update, batch in made}
    assert sorted(pairs) == [1, 2, 3, 4, 5, 6]
    for update in (1, 6):
        counts = np.bincount(pairs[update].numpy() // 100, minlength=11)[1:]
        assert counts.sum() == 320 and chisquare(counts).pvalue > 1e-3
    # what order of completion would have handed out: the 320 that are done first
    n = torch.cat([t // 100 for t in pairs.values()]).numpy()
    free = np.zeros(16)
    ends = []
    for steps in n:
        slot = free.argmin()
        free[slot] += steps
        ends.append(free[slot])
    early = n[np.argsort(ends, kind="stable")[:40]]
    assert chisquare(np.bincount(early, minlength=11)[1:]).pvalue < 0.05


@pytest.mark.parametrize("guidance", [(1.0,), (2.0,), (1.0, 3.0)])
def test_training_is_the_same_in_flight(teacher, f, guidance):
    group = Group("heun", 10, guidance, (1, 4, 10), (0, 1))
    ends = []
    for slots in (0, 48):
        students = students_of(group)
        pairs = Pairs(teacher, teacher, group, 16, updates_per_solve=4, solves_in_flight=slots)
        list(distill(pairs, students, Settings(updates=12, lr=1e-3), f))
        ends.append(students.state_dict())
    for name, value in ends[0].items():
        assert torch.allclose(value, ends[1][name], atol=1e-5), name


def test_an_interrupted_run_in_flight_ends_with_the_same_weights(study, tmp_path, monkeypatch):  # noqa: F811
    whole = train_group(study, parameters(tmp_path / "whole", solves_in_flight=24), CPU)
    with interrupted_at(34):
        train_group(study, parameters(tmp_path, solves_in_flight=24), CPU)
    resumed = train_group(study, parameters(tmp_path, solves_in_flight=24), CPU)
    # An ODE is in another slot after resuming, and on some processors the last bit depends on the slot.
    for name, value in whole.tensors.items():
        torch.testing.assert_close(resumed.tensors[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("reuse", [2, 10])
def test_reused_trajectories_give_pairs_on_them(teacher, reuse):
    """Points are uniform on the grid, none twice from one trajectory, and each target is the solve from its point."""
    group = Group("ddim", 10, (1.0, 3.0), (1, 4, 10), (0, 1))
    counts = np.zeros(11)
    for _, batch in Pairs(teacher, teacher, group, 20, updates_per_solve=2, pairs_per_trajectory=reuse).between(0, 3):
        assert batch.evaluations == 2 * 2 * (20 // reuse) * 10 * 2
        for i, member in enumerate(group.members):
            x, t, c = batch.x[i], batch.t[i], batch.condition[i]
            plain = solve(teacher, x, t // 100, c, member.guidance, "ddim", Grid(10), member.horizon)
            assert torch.allclose(batch.x_hat[i], plain.x, atol=1e-5)
            assert torch.equal(batch.t_hat[i], 100 * plain.n)
            assert all(len(set(row.tolist())) == reuse for row in t.unflatten(0, (-1, reuse)))
        counts += np.bincount(batch.t[0].numpy() // 100, minlength=11)
    assert counts[0] == 0 and (counts[1:] > 0).all()
    assert reuse < 10 or len(set(counts[1:])) == 1


def test_impossible_settings_are_refused(teacher, f):
    grid = Grid(10)
    with pytest.raises(InputError, match="slots = 0 is out of range"):
        next(solve_in_flight(teacher, starts(1, 4), "ddim", grid, 0, (1,)))
    with pytest.raises(InputError, match="allowed: one size"):
        list(solve_in_flight(teacher, iter([*starts(1, 4), *starts(1, 5)]), "ddim", grid, 2, (1,)))
    with pytest.raises(InputError, match="allowed: 1 to intervals = 10"):
        list(solve_in_flight(teacher, starts(1, 40, intervals=20), "ddim", grid, 2, (1,)))
    assert list(solve_in_flight(teacher, iter([]), "ddim", grid, 2, (1,))) == []
    group = Group("ddim", 10, (1.0,), (1,), (0,))
    with pytest.raises(InputError, match="divisors of batch = 16"):
        Pairs(teacher, teacher, group, 16, pairs_per_trajectory=3)
    with pytest.raises(InputError, match="allowed: 0 with pairs_per_trajectory above 1"):
        Pairs(teacher, teacher, group, 16, pairs_per_trajectory=2, solves_in_flight=4)
    with pytest.raises(InputError, match="divisors of batch = 20 up to intervals = 10"):
        Pairs(teacher, teacher, group, 20, pairs_per_trajectory=20)
