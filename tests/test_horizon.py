import pytest
import torch

from dcm.consistency import ConsistencyFunction, sample
from dcm.horizon import Group, distance, horizon_target, resolve_horizon
from dcm.metrics.metric import ode_error
from dcm.pairs import Pairs
from dcm.schedule import Grid
from dcm.solvers import solve
from dcm.students.lockstep import MLPStudents, ModuleStudents
from dcm.support.errors import InputError, TrainingError
from dcm.support.seeds import sample_noise
from dcm.training.loop import State, check_finite, distill
from dcm.training.settings import Settings


def students_of(group, width=32):
    students = MLPStudents([m.seed for m in group.members], 2, 4, 1000, width)
    for p in students.parameters():  # the last layer starts at zero, which would make the tests below trivial
        with torch.no_grad():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return students


@pytest.fixture
def group():
    return Group("ddim", 10, (1.0, 3.0), (1, 4, 10), (0, 1))


def test_boundary_condition(f):
    x = torch.randn(3, 7, 2)
    answer = f(lambda x, t, c: torch.randn_like(x), x, torch.zeros(3, 7, dtype=torch.long), None)
    assert torch.equal(answer, x)


def test_the_papers_scalings(f):
    """s_d = 0.5 and k = 10 (timesteps, not fractions of T)."""
    c_skip, c_out = f.coefficients(torch.tensor([0, 1, 1000]), torch.zeros(3, 2, dtype=torch.float64))
    kt = torch.tensor([[0.0], [10.0], [10000.0]], dtype=torch.float64)
    assert torch.allclose(c_skip, 0.25 / (kt**2 + 0.25)) and torch.allclose(c_out, kt / (kt**2 + 0.25).sqrt())


def test_members_and_which_of_them_bootstrap(group):
    assert [m.horizon for m in group.members] == 4 * [1] + 4 * [4] + 4 * [10]
    assert [(m.guidance, m.seed) for m in group.members[:4]] == [(1.0, 0), (1.0, 1), (3.0, 0), (3.0, 1)]
    assert group.bootstrapped == 8 and group.ends == [0, 1, 8, 9]


def test_noise_is_independent_of_the_data_it_is_added_to(teacher):
    drawn = []

    class Normal:
        def draw(self, generator, batch):
            drawn.append(torch.randn(batch, 2, generator=generator))
            return drawn[-1], torch.zeros(batch, dtype=torch.long)

    [batch] = Pairs(teacher, Normal(), Group("ddim", 10, (1.0,), (10,), (0,)), 4000).solved([1])
    alpha, sigma = teacher.schedule.alpha(batch.t[0], batch.x[0]), teacher.schedule.sigma(batch.t[0], batch.x[0])
    noise = (batch.x[0] - alpha * drawn[0]) / sigma
    both = torch.cat([noise, drawn[0]], 1).T
    assert (torch.corrcoef(both) - torch.eye(4)).abs().max() < 0.07 and abs(float(noise.std()) - 1) < 0.05


def test_denoising_inverts_noising(teacher):
    x_0, eps = torch.randn(5, 2), torch.randn(5, 2)
    t = torch.tensor([1, 10, 100, 500, 1000])
    x = teacher.schedule.add_noise(x_0, eps, t)
    alpha, sigma = teacher.schedule.alpha(t, x), teacher.schedule.sigma(t, x)
    for prediction, output in (("v_prediction", alpha * eps - sigma * x_0), ("epsilon", eps), ("sample", x_0)):
        f = ConsistencyFunction(teacher.schedule, prediction=prediction)
        assert torch.allclose(f.denoise(output, x, t), x_0, atol=2e-4)


def test_horizon_targets(teacher, f, group):
    """h = N gives the full solve, h = 1 the CM target, h between its own; all to 1e-6."""
    students, grid = students_of(group), Grid(10)
    [batch] = Pairs(teacher, teacher, group, 64).solved([3])
    targets = horizon_target(f, students, batch, bootstrapped=8)
    for i, member in enumerate(group.members):
        x, c, n = batch.x[i], batch.condition[i], batch.t[i] // 100
        steps = solve(teacher, x, n, c, member.guidance, "ddim", grid, steps=member.horizon)
        if member.horizon == 10:
            expected = solve(teacher, x, n, c, member.guidance, "ddim", grid).x
        else:
            t = grid.time(steps.n)
            expected = f(students, steps.x[None], t[None], c[None], members=slice(i, i + 1))[0]
            expected = torch.where((t == 0)[:, None], steps.x, expected)
        assert (targets[i] - expected).abs().max() < 1e-6, member
    assert not targets.requires_grad


def test_members_of_one_seed_share_their_draws(teacher, group):
    [batch] = Pairs(teacher, teacher, group, 16).solved([1])
    by_seed = {s: [i for i, m in enumerate(group.members) if m.seed == s] for s in group.seeds}
    for rows in by_seed.values():
        assert all(torch.equal(batch.x[rows[0]], batch.x[i]) for i in rows)
    assert not torch.equal(batch.x[by_seed[0][0]], batch.x[by_seed[1][0]])


def test_solving_updates_together_changes_nothing(teacher, group):
    together = Pairs(teacher, teacher, group, 16).solved([4, 5, 6])
    for update, batch in zip([4, 5, 6], together):
        [alone] = Pairs(teacher, teacher, group, 16).solved([update])
        assert torch.equal(batch.x, alone.x) and batch.evaluations == alone.evaluations
        assert torch.allclose(batch.x_hat, alone.x_hat, atol=1e-5)


def test_starting_indices_are_uniform(teacher):
    group = Group("ddim", 10, (1.0,), (10,), tuple(range(20)))
    t = torch.cat([b.t.flatten() for b in Pairs(teacher, teacher, group, 500).solved([1, 2])])
    share = torch.bincount(t // 100, minlength=11)[1:] / len(t)
    assert (share - 0.1).abs().max() < 4 * (0.09 / len(t)) ** 0.5


def test_lockstep_equals_training_alone(teacher, f, group):
    """A student trained in a group ends where it ends when trained alone: gradients and clipping are its own."""
    settings = Settings(updates=8, lr=1e-2)
    crowd = MLPStudents([m.seed for m in group.members], 2, 4, 1000, 32)
    *_, last = distill(Pairs(teacher, teacher, group, 32), crowd, settings, f)
    for i in (1, 6, 11):
        m = group.members[i]
        alone = MLPStudents([m.seed], 2, 4, 1000, 32)
        single = Group("ddim", 10, (m.guidance,), (m.horizon,), (m.seed,))
        *_, end = distill(Pairs(teacher, teacher, single, 32), alone, settings, f)
        assert torch.allclose(end.loss[0], last.loss[i], rtol=1e-3)
        for name, value in crowd.member_state(i).items():
            assert torch.allclose(value, alone.state_dict()[name], atol=2e-4), (m, name)


def test_gradients_are_clipped_per_member():
    students = MLPStudents([0, 1], 2, 4, 1000, 16)
    for p in students.parameters():
        p.grad = torch.ones_like(p) * torch.tensor([1e-4, 10.0]).reshape(2, *(1,) * (p.ndim - 1))
    students.clip_gradients(1.0)
    norm = sum(p.grad.square().flatten(1).sum(1) for p in students.parameters()).sqrt()
    assert float(norm[0]) < 0.05 and abs(float(norm[1]) - 1) < 1e-3
    assert torch.allclose(students.weights[0].grad[0], torch.tensor(1e-4))


def test_students_as_modules_equal_the_batched_ensemble():
    batched = MLPStudents([0, 1], 2, 4, 1000, 16)
    with torch.no_grad():
        batched.weights[-1].normal_(generator=torch.Generator().manual_seed(0))

    class One(torch.nn.Module):
        def __init__(self, m):
            super().__init__()
            self.net = MLPStudents([m], 2, 4, 1000, 16)
            self.net.load_state_dict(batched.member_state(m))

        def forward(self, x, t, c):
            return self.net(x[None], t[None], c[None])[0]

    listed = ModuleStudents([One(0), One(1)])
    x, t, c = torch.randn(2, 9, 2), torch.randint(1, 1001, (2, 9)), torch.randint(0, 4, (2, 9))
    assert torch.allclose(listed(x, t, c), batched(x, t, c), atol=1e-6)
    assert torch.allclose(listed(x[1:], t[1:], c[1:], members=slice(1, 2))[0], batched(x, t, c)[1], atol=1e-6)


def test_a_short_run_learns(teacher, f):
    """400 updates bring the Direct CM's one-step ODE error to under a third of the untrained student's."""
    group = Group("ddim", 10, (2.0,), (10,), (0,))
    students = MLPStudents([0], 2, 4, 1000, 64)
    noise, c = sample_noise(0, "evaluation", range(512), (2,)), torch.arange(512) % 4
    solution = solve(teacher, noise, 10, c, 2.0, "ddim", Grid(10)).x
    error = lambda: ode_error(sample(f, students, noise[None], c[None], Grid(10), [])[0], solution)  # noqa: E731
    untrained = error()
    for _ in distill(Pairs(teacher, teacher, group, 128, updates_per_solve=8), students, Settings(400, lr=3e-3), f):
        pass
    assert error() < untrained / 3


def test_few_step_sampling_denoises_and_renoises(teacher, f, group):
    students = students_of(group)
    x, c = torch.randn(12, 5, 2), torch.zeros(12, 5, dtype=torch.long)
    fresh = [torch.randn(5, 2)]
    got = sample(f, students, x, c, Grid(10), fresh)
    t = lambda v: torch.full((12, 5), v)  # noqa: E731
    half = teacher.schedule.add_noise(f(students, x, t(1000), c), fresh[0].expand(12, 5, 2), t(500))
    assert torch.allclose(got, f(students, half, t(500), c), atol=1e-6)


def test_noise_does_not_depend_on_batching():
    whole = sample_noise(7, "evaluation", range(10), (2, 3))
    parts = torch.cat([sample_noise(7, "evaluation", r, (2, 3)) for r in (range(4), range(4, 10))])
    assert torch.equal(whole, parts)
    assert torch.equal(sample_noise(7, "evaluation", [8, 2], (2, 3)), whole[[8, 2]])
    assert not torch.equal(whole, sample_noise(8, "evaluation", range(10), (2, 3)))
    assert not torch.equal(whole, sample_noise(7, "renoise", range(10), (2, 3)))
    many = sample_noise(0, "evaluation", range(20000), (2,))
    assert many.mean().abs() < 0.02 and abs(many.std() - 1) < 0.02 and abs(torch.corrcoef(many.T)[0, 1]) < 0.02


def test_losses():
    a, b = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    assert torch.allclose(distance(a, b, "l2"), torch.tensor(4.0))
    assert torch.allclose(distance(a, b, "huber"), torch.tensor((4 + 1e-6) ** 0.5 - 1e-3))


def test_horizons_by_name():
    assert resolve_horizon("cm", 50) == 1 and resolve_horizon("direct", 50) == 50
    for bad in (0, 51, "mc", True):
        with pytest.raises(InputError, match="allowed: 'cm', 'direct', or a whole number from 1 to 50"):
            resolve_horizon(bad, 50)


def test_a_loss_that_is_not_finite_stops_the_run(group):
    loss = torch.ones(12)
    loss[5] = float("nan")
    with pytest.raises(TrainingError, match="horizon 4, guidance 1, seed 1 is not finite at update 9.*lower lr"):
        check_finite(State(9, None, None, loss, 0), group.members)
