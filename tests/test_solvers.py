import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from scipy.integrate import quad

from dcm.schedule import Grid, NoiseSchedule
from dcm.solvers import SOLVERS, Solver, solve
from dcm.solvers_in_flight import Starts, solve_in_flight
from dcm.support.errors import InputError
from dcm.support.seeds import sample_noise
from dcm.teacher import guided_noise
from dcm.teachers.mixture import ContinuousSchedule, GaussianMixtureTeacher, exact_solution


@pytest.fixture(scope="module")
def start():
    return sample_noise(0, "evaluation", range(48), (2,)).double(), torch.arange(48) % 4


def test_alpha_bar_is_the_integral_of_the_rate():
    schedule = ContinuousSchedule.scaled_linear()
    for s in (0.01, 0.3, 1.0):
        assert np.isclose(np.log(schedule.alpha_bar_at(s)), -quad(schedule.rate_at, 0, s)[0], rtol=1e-10)
    # and it is SDXL's discrete schedule up to O(1/T)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert np.abs(np.sqrt(schedule.alpha_bar) - np.sqrt(NoiseSchedule.from_betas(betas).alpha_bar)).max() < 2e-3


def test_intervals_must_divide_the_timesteps():
    with pytest.raises(InputError, match="intervals = 30 does not divide .* allowed: 1, 2, 4, 5"):
        Grid(30)


def test_student_times_are_the_papers():
    assert Grid(100).student_indices(1) == [100]
    assert Grid(100).student_indices(4) == [100, 75, 50, 25]
    assert Grid(50).student_indices(8) == [50, 44, 38, 31, 25, 19, 12, 6]
    with pytest.raises(InputError, match="allowed: 1 to intervals = 10"):
        Grid(10).student_indices(11)


def test_reference_is_exact_for_one_gaussian():
    """For data N(m, c I) the PF-ODE's flow is known: x_t and x_0 keep their standard score."""
    mean, c = np.array([[0.5, -1.0]]), 0.3
    teacher = GaussianMixtureTeacher(mean, c * np.eye(2)[None], np.array([0]), np.array([1.0]))
    x = sample_noise(0, "evaluation", range(20), (2,)).double()
    got = exact_solution(teacher, x, 1000, torch.zeros(20, dtype=torch.long), 1.0)
    a = teacher.schedule.alpha_bar[-1]
    expected = mean + (x.numpy() - np.sqrt(a) * mean) * np.sqrt(c / (a * c + 1 - a))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-8)


def test_reference_has_converged_for_the_mixture(teacher, start):
    x, c = start
    a, b = (exact_solution(teacher, x, 1000, c, 3.0, tolerance=e) for e in (1e-10, 1e-12))
    assert (a - b).abs().max() < 1e-8


@pytest.mark.parametrize("name", SOLVERS)
def test_observed_order(teacher, start, name):
    """Shrink the step, regress log-error on log-step against the exact flow: the slope is the declared order.

    Away from t = 0, where Euler and Heun lose accuracy in this time variable: from t = 1000 down to t = 200. The
    exact end point there is the start of the exact solution that reaches the same data.
    """
    from scipy.integrate import solve_ivp

    x, c = start
    schedule, stop = teacher.schedule, 200

    def slope(s, flat):
        y = torch.from_numpy(flat).reshape(x.shape)
        a = torch.tensor([schedule.alpha_bar_at(s)], dtype=torch.float64)
        score = teacher.score_at(y, a.sqrt(), (1 - a).sqrt(), c, 2.0)
        return (-schedule.rate_at(s) / 2 * (y + score)).reshape(-1).numpy()

    truth = solve_ivp(slope, (1, stop / 1000), x.reshape(-1).numpy(), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    steps, errors = [50, 100, 200, 500], []
    for N in steps:
        end = solve(teacher, x, N, c, 2.0, name, Grid(N), steps=N * 4 // 5).x
        errors.append(float((end.reshape(-1) - torch.from_numpy(truth)).square().mean().sqrt()))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(order - SOLVERS[name].order) < 0.2, errors


@pytest.mark.parametrize("N", [10, 50])
def test_ddim_equals_diffusers(teacher, start, N):
    """diffusers calls a network with t - 1 where we say t: same tables, shifted by one."""
    x, c = start
    a = np.concatenate([[1.0], teacher.schedule.alpha_bar])
    scheduler = DDIMScheduler(
        trained_betas=1 - a[1:] / a[:-1], clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(N)
    y = x
    for t in scheduler.timesteps:
        eps = guided_noise(teacher, y, torch.full((len(y),), int(t) + 1), c, 2.0)
        y = scheduler.step(eps, int(t), y).prev_sample
    assert (solve(teacher, x, N, c, 2.0, "ddim", Grid(N)).x - y).abs().max() < 1e-5


def test_each_sample_solves_from_its_own_time(teacher, start):
    x, c = start
    grid, n = Grid(10), torch.arange(48) % 11
    together = solve(teacher, x, n, c, 2.0, "heun", grid, steps=6, save_at=(1, 3, 6))
    for i in range(0, 48, 5):
        for h in (1, 3, 6):
            alone = solve(teacher, x[i : i + 1], n[i], c[i : i + 1], 2.0, "heun", grid, steps=h)
            assert torch.allclose(together.at[h][i], alone.x[0], atol=1e-9)
        assert int(together.n[i]) == max(0, int(n[i]) - 6)
    assert together.evaluations == int(n.clamp(max=6).sum()) * 2 * 2
    path = solve(teacher, x, 10, c, 1, "ddim", grid, trajectory=True)
    assert path.trajectory.shape == (11, 48, 2) and torch.equal(path.trajectory[-1], path.x)
    assert path.evaluations == 48 * 10


def test_heuns_last_step_calls_the_network_at_the_first_timestep(teacher):
    """Its corrector's slope at t = 0 is that of the first table entries, which belong to t = 1."""
    schedule, x, seen = teacher.schedule, torch.tensor([[0.4, -0.7]], dtype=torch.float64), []
    eps = torch.tensor([[0.3, 0.9]], dtype=torch.float64)
    noise = lambda y, t: seen.append(int(t)) or eps + 0.1 * y
    found = SOLVERS["heun"].step(noise, schedule, x, torch.tensor([500]), torch.tensor([0]))
    slope = lambda y, k: -schedule.rate[k] / 2 * y + schedule.rate[k] / (2 * (1 - schedule.alpha_bar[k]) ** 0.5) * (
        eps + 0.1 * y
    )
    first = slope(x, 499)
    expected = x - 0.25 * (first + slope(x - 0.5 * first, 0))
    assert seen == [500, 1] and torch.allclose(found, expected, atol=1e-12)


def test_bad_input(teacher, start):
    x, c = start
    with pytest.raises(InputError, match="solver = 'rk4' is unknown; allowed: ddim, euler, heun"):
        solve(teacher, x, 10, c, 2.0, "rk4", Grid(10))
    with pytest.raises(InputError, match="grid index"):
        solve(teacher, x, 11, c, 2.0, "ddim", Grid(10))


def midpoint_step(noise, schedule, x, t, s):
    """The midpoint rule on the PF-ODE: its second stage is at a time between two timesteps."""
    slope = lambda y, u: -schedule.beta(u, y) / 2 * y + schedule.beta(u, y) / (2 * schedule.sigma(u, y)) * noise(y, u)
    h, middle = (s - t).double().reshape(-1, 1) / schedule.T, (t + s).double() / 2
    return x + h * slope(x + h / 2 * slope(x, t), middle)


def test_a_solver_with_a_stage_at_a_fractional_time(teacher, start, monkeypatch):
    """One function, named in SOLVERS: it has its order, and solves in flight as it does else."""
    monkeypatch.setitem(SOLVERS, "midpoint", Solver(midpoint_step, order=2, evaluations=2))
    test_observed_order(teacher, start, "midpoint")
    x, c = start
    starts = Starts(x, torch.arange(48) % 8 + 1, c, 2.0)  # N = 8: steps of 125 timesteps
    [flown] = solve_in_flight(teacher, [starts], "midpoint", Grid(8), 7, (8,))
    assert torch.allclose(flown.x, solve(teacher, x, starts.n, c, 2.0, "midpoint", Grid(8)).x, atol=1e-9)


@pytest.mark.parametrize("t", [1, 37, 1000])
def test_tables_between_their_entries(t):
    """A whole number gives the entry itself; between two, alpha^2 + sigma^2 is 1 and both lie between."""
    schedule = NoiseSchedule.from_betas(np.linspace(1e-4, 0.02, 1000))
    x, at, between = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([t]), torch.tensor([min(t + 0.4, 999.6)])
    for name in ("alpha", "sigma", "beta"):
        assert torch.allclose(getattr(schedule, name)(at.double(), x), getattr(schedule, name)(at, x), rtol=1e-12)
        low, high = (getattr(schedule, name)(between.long() + k, x) for k in (0, 1))
        assert low.min(high) < getattr(schedule, name)(between, x) < low.max(high)
    assert torch.allclose(schedule.alpha(between, x) ** 2 + schedule.sigma(between, x) ** 2, torch.ones(1, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="t = 0.5 lies outside the schedule; allowed: fractional timesteps from 1 to 1000"):
        schedule.alpha(torch.tensor([0.5]), x)


def test_a_continuous_schedule_is_evaluated_and_not_interpolated(teacher):
    t, x = torch.tensor([400.5]), torch.zeros(1, 2, dtype=torch.float64)
    exact = teacher.schedule.alpha_bar_at(0.4005)
    assert abs(float(teacher.schedule.alpha(t, x)) ** 2 - exact) < 1e-12
    assert 1e-12 < abs(float(NoiseSchedule(teacher.schedule.alpha_bar, teacher.schedule.rate).alpha(t, x)) ** 2 - exact) < 1e-6


@pytest.mark.parametrize("N", [10, 50])
def test_dpm_solver_equals_diffusers(teacher, start, N):
    """Its times are ours less one, as in the test of DDIM; its sigmas are kept in float32."""
    x, c = start
    a = np.concatenate([[1.0], teacher.schedule.alpha_bar])
    scheduler = DPMSolverMultistepScheduler(
        trained_betas=1 - a[1:] / a[:-1], algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero",
        timestep_spacing="trailing", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(N)
    y = x
    for t in scheduler.timesteps:
        eps = guided_noise(teacher, y, torch.full((len(y),), int(t) + 1), c, 2.0)
        y = scheduler.step(eps, t, y).prev_sample
    ours = solve(teacher, x, N, c, 2.0, "dpmpp_2m", Grid(N)).x
    assert (ours - y).abs().max() < 1e-4 * y.abs().max()
    assert (ours - solve(teacher, x, N, c, 2.0, "ddim", Grid(N)).x).abs().max() > 1e-3


def test_one_step_of_dpm_solver_is_ddims(teacher, start):
    x, c = start
    step = lambda name: solve(teacher, x, torch.arange(48) % 10 + 1, c, 2.0, name, Grid(10), steps=1).x
    assert torch.allclose(step("dpmpp_2m"), step("ddim"), atol=1e-12)


def test_edms_heun_is_heuns_method_in_the_time_sigma_over_alpha(teacher):
    schedule, x = teacher.schedule, torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    eps = lambda y, t: torch.tensor([[0.3, 0.9]], dtype=torch.float64) + 0.1 * y
    at = lambda t: (float(schedule.alpha(torch.tensor([t]), x)), float(schedule.sigma(torch.tensor([t]), x)))
    (a, b), (c, d) = at(500), at(300)
    step, y = d / c - b / a, x / a
    predicted = y + step * eps(x, None)
    expected = c * (y + step / 2 * (eps(x, None) + eps(c * predicted, None)))
    found = SOLVERS["edm_heun"].step(eps, schedule, x, torch.tensor([500]), torch.tensor([300]))
    assert torch.allclose(found, expected, atol=1e-12)
    to_data = SOLVERS["edm_heun"].step(eps, schedule, x, torch.tensor([500]), torch.tensor([0]))
    assert torch.allclose(to_data, (x - b * eps(x, None)) / a, atol=1e-12)
