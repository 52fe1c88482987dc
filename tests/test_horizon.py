import pytest
import torch

from dcm.consistency import ConsistencyFunction, sample
from dcm.horizon import Group, distance, horizon_at, horizon_target, method_name, resolve_horizon, stages
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
        f = ConsistencyFunction(teacher.schedule, prediction=prediction, least_alpha=0)
        assert torch.allclose(f.denoise(output, x, t), x_0, atol=2e-4)


def test_horizon_targets(teacher, f, group):
    """h = N gives the full solve, h = 1 the CM target, h between its own; all to 1e-6."""
    students, grid = students_of(group), Grid(10)
    [batch] = Pairs(teacher, teacher, group, 64).solved([3])
    assert batch.stage.bootstrapped == (slice(0, 8),)
    targets = horizon_target(f, students, batch)
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
        for name, value in crowd.state_dict().items():
            assert torch.allclose(value[i : i + 1], alone.state_dict()[name], atol=2e-4), (m, name)


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
            self.net.load_state_dict({name: p[m : m + 1] for name, p in batched.state_dict().items()})

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
    assert resolve_horizon("direct>cm", 10) == ((0.5, 10), (0.5, 1)) == resolve_horizon([[0.5, "direct"], [0.5, 1]], 10)
    assert resolve_horizon("anneal", 10) == ((0.25, 10), (0.25, 5), (0.25, 2), (0.25, 1))
    assert resolve_horizon([[0.3, 4], [0.7, 4]], 10) == 4 == resolve_horizon("4>4", 10)


@pytest.mark.parametrize(
    "horizon",
    [
        *(0, 51, "mc", True, 2.0, "cm>mc", "cm>", "cm>direct>", [], [[1, "mc"]], [[0.5, "cm", 1], [0.5, "direct"]], [0.5, 0.5]),
        *([[share, "cm"], [0.5, "direct"]] for share in (0.4, -0.5, 0, "x")),
        [[0.5, "anneal"], [0.5, "cm"]],
    ],
)  # fmt: skip
def test_horizons_that_are_none(horizon):
    with pytest.raises(InputError, match="is not possible with intervals = 50; allowed: 'cm', 'direct', a whole number"):
        resolve_horizon(horizon, 50)


def test_nothing_to_anneal():
    with pytest.raises(InputError, match="'anneal' is not possible with intervals = 1; .* 'anneal' from 2 intervals on"):
        resolve_horizon("anneal", 1)


def test_names_of_methods():
    names = ["cm", "direct", 5, "direct>cm", "cm>direct", "anneal", "direct>2>cm", [[0.25, "direct"], [0.75, "cm"]]]
    shown = ["CM", "Direct CM", "h = 5", "direct>cm", "cm>direct", "anneal", "direct>2>cm", "0.25 direct>0.75 cm"]
    assert [method_name(resolve_horizon(h, 10), 10) for h in names] == shown


def test_where_a_horizon_changes():
    anneal = resolve_horizon("anneal", 10)
    assert [horizon_at(anneal, u, 8) for u in range(1, 9)] == [10, 10, 5, 5, 2, 2, 1, 1]
    assert [horizon_at(((0.5, 10), (0.5, 1)), u, 3) for u in (1, 2, 3)] == [10, 10, 1]
    group = switching(10)
    assert group.switches(8) == [2, 4, 6] and group.switches(1) == []
    assert [method_name(h, 10) for h in group.ordered] == ["cm>direct", "CM", "direct>cm", "anneal", "Direct CM"]


def switching(N: int, seeds=(0,)) -> Group:
    names = ("cm", "direct", "direct>cm", "cm>direct", "anneal")
    return Group("ddim", N, (2.0,), tuple(resolve_horizon(h, N) for h in names), seeds)


@pytest.mark.parametrize("how", [dict(updates_per_solve=8), dict(solves_in_flight=16), dict(pairs_per_trajectory=4)])
def test_a_switch_changes_the_objective_alone(teacher, f, how):
    """Up to the switch a student is the one whose objective it has; after it, one that goes on with the other."""
    group, settings = switching(10, (0, 1)), Settings(updates=12, lr=1e-2)
    students = MLPStudents([m.seed for m in group.members], 2, 4, 1000, 32)
    pairs = Pairs(teacher, teacher, group, 32, updates=12, **how)
    at = {}
    for state in distill(pairs, students, settings, f):
        at[state.update] = students.state_dict()["weights.1"].clone()
    of = {(method_name(m.horizon, 10), m.seed): i for i, m in enumerate(group.members)}
    same = lambda update, a, b: torch.allclose(at[update][of[a, 1]], at[update][of[b, 1]], atol=1e-5)  # noqa: E731
    assert same(6, "direct>cm", "Direct CM") and same(6, "cm>direct", "CM")
    assert same(3, "anneal", "Direct CM") and not same(6, "anneal", "Direct CM")
    assert not same(12, "direct>cm", "Direct CM") and not same(12, "cm>direct", "CM")
    assert not same(12, "direct>cm", "cm>direct")


class Alone(torch.nn.Module):
    """A student as a network of its own."""

    def __init__(self, seed: int):
        super().__init__()
        self.net = MLPStudents([seed], 2, 4, 1000, 32)

    def forward(self, x, t, c):
        return self.net(x[None], t[None], c[None])[0]


@pytest.mark.parametrize("networks", [False, True])
def test_students_of_one_past_train_once_and_end_as_each_alone(teacher, f, networks):
    group, settings = switching(10, (0, 1)), Settings(updates=12, lr=1e-2)
    make = lambda seeds: ModuleStudents([Alone(s) for s in seeds]) if networks else MLPStudents(seeds, 2, 4, 1000, 32)  # noqa: E731
    trained = [sum(s.stop - s.start for s in stage.trained) for stage in stages(group, 12)]
    assert trained == [4, 6, 10, 10]  # two methods, three (anneal parts from the Direct CM), and all
    crowd = make([m.seed for m in group.members])
    for state in distill(Pairs(teacher, teacher, group, 32, updates=12), crowd, settings, f):
        assert bool((state.loss > 0).all())
    rows = lambda students, i: [p for n, p in students.named_parameters() if n.startswith(f"networks.{i}.")] if networks else [p[i] for p in students.parameters()]  # noqa: E731
    for i, m in enumerate(group.members):
        alone, single = make([m.seed]), Group("ddim", 10, (2.0,), (m.horizon,), (m.seed,))
        *_, end = distill(Pairs(teacher, teacher, single, 32, updates=12), alone, settings, f)
        assert torch.allclose(end.loss[0], state.loss[i], rtol=1e-3)
        for own, other in zip(rows(crowd, i), rows(alone, 0)):
            assert torch.allclose(own, other, atol=2e-4), m


def test_targets_follow_the_horizon(teacher, f):
    group, students, grid = switching(10), MLPStudents([0] * 5, 2, 4, 1000, 16), Grid(10)
    first, last = Pairs(teacher, teacher, group, 16, updates=8).solved([1, 8])
    assert first.stage.bootstrapped == (slice(0, 1),) and last.stage.bootstrapped == (slice(1, 4),)
    for batch in (first, last):
        targets = horizon_target(f, students, batch)
        for i, h in enumerate(batch.stage.horizons):
            if any(i == who.start for who, _ in batch.stage.followers):
                continue  # it has the weights of the one that it follows
            x, c, n = batch.x[i], batch.condition[i], batch.t[i] // 100
            steps = solve(teacher, x, n, c, 2.0, "ddim", grid, steps=h)
            assert (batch.x_hat[i] - steps.x).abs().max() < 1e-6
            own = f(students, steps.x[None], grid.time(steps.n)[None], c[None], members=slice(i, i + 1))[0]
            assert (targets[i] - own).abs().max() < 1e-6


def test_a_horizon_that_changes_needs_the_number_of_updates(teacher):
    with pytest.raises(InputError, match="updates is missing"):
        Pairs(teacher, teacher, switching(10), 16)


def test_optimiser_at_a_switch(teacher, f):
    """By default its state goes on; ``restart`` gives every student a fresh one, those of constant horizon too."""
    group = Group("ddim", 10, (2.0,), (1, resolve_horizon("direct>cm", 10)), (0,))
    steps = {}
    for at_switch in ("continue", "restart"):
        students = MLPStudents([0, 0], 2, 4, 1000, 16)
        settings = Settings(updates=8, at_switch=at_switch)
        for state in distill(Pairs(teacher, teacher, group, 8, updates=8), students, settings, f):
            steps[at_switch, state.update] = float(next(iter(state.optimizer.state.values()))["step"])
    assert [steps["continue", u] for u in (4, 5, 8)] == [4, 5, 8] and [steps["restart", u] for u in (4, 5, 8)] == [
        4,
        1,
        4,
    ]


def test_a_loss_that_is_not_finite_stops_the_run(group):
    loss = torch.ones(12)
    loss[5] = float("nan")
    with pytest.raises(TrainingError, match="horizon 4, guidance 1, seed 1 is not finite at update 9.*lower lr"):
        check_finite(State(9, None, None, loss, 0), group.members)
