"""The exact teacher: a class-conditional Gaussian mixture, whose noised score, and so the true ODE solution, is known."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dcm.schedule import NoiseSchedule

CLASSES = 4  # of the study's mixtures


class ContinuousSchedule(NoiseSchedule):
    """SDXL's ``scaled_linear`` schedule with time made continuous: beta(s) = T (a + s d)^2, s in [0, 1].

    ``log alpha_bar(s)`` is then minus the integral of beta exactly, so that all solvers converge to one and the same
    PF-ODE. (Discrete tables of both agree to O(beta_t) only, which would hide Heun's second order.)
    """

    A, D = np.sqrt(0.00085), np.sqrt(0.012) - np.sqrt(0.00085)

    @classmethod
    def scaled_linear(cls, T: int = 1000) -> "ContinuousSchedule":
        """Schedule with T integer timesteps."""
        s, probe = np.arange(1, T + 1) / T, cls(np.empty(T), np.empty(T))
        return cls(probe.alpha_bar_at(s), probe.rate_at(s))

    def rate_at(self, s):
        """beta(s) for time s in [0, 1]."""
        return self.T * (self.A + s * self.D) ** 2

    def alpha_bar_at(self, s):
        """alpha_bar(s) = exp(-integral of beta from 0 to s)."""
        return np.exp(-self.T * ((self.A + s * self.D) ** 3 - self.A**3) / (3 * self.D))

    def _between(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        s = t.double().cpu().numpy() / self.T
        a = self.alpha_bar_at(s)
        value = {"alpha": a**0.5, "sigma": (1 - a) ** 0.5, "rate": self.rate_at(s)}[name]
        return torch.as_tensor(value, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class GaussianMixtureTeacher:
    """Noise prediction of a Gaussian mixture seen through the variance-preserving process.

    Component k of x_0 is N(m_k, C_k) and belongs to one class; the null condition, ``num_classes``, is the mixture of all.
    Then x_t given k is N(alpha_t m_k, alpha_t^2 C_k + sigma_t^2 I), and the noise prediction is the score times -sigma_t
    (Song et al. 2021, eq. 9 with the variance-preserving perturbation kernel).
    """

    means: np.ndarray  # (K, D)
    covariances: np.ndarray  # (K, D, D)
    labels: np.ndarray  # (K,), the class of each component
    weights: np.ndarray  # (K,), summing to 1
    schedule: ContinuousSchedule = field(default_factory=ContinuousSchedule.scaled_linear)
    _cache: dict = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def interleaved_ring(cls, modes: int = 3) -> "GaussianMixtureTeacher":
        """4 classes of `modes` Gaussians each on a ring, interleaved, so that every class spans the plane.

        Their standard deviations are 0.22 along and 0.07 across the spoke, where there is room. Modes of one class have
        unequal weights, so that losing one shows.
        """
        k = np.arange(CLASSES * modes)
        angle = 2 * np.pi * k / len(k)
        spoke = np.stack([np.cos(angle), np.sin(angle)], -1)
        tangent = np.stack([-np.sin(angle), np.cos(angle)], -1)
        spread = 0.22, 0.07 * min(1.0, 3 / modes)
        covariances = sum(s**2 * u[:, :, None] * u[:, None, :] for s, u in zip(spread, (spoke, tangent)))
        weights = 1.0 + k // CLASSES
        return cls(1.2 * spoke, covariances, k % CLASSES, weights / weights.sum())

    @classmethod
    def of(cls, dimension: int = 2, modes: int = 3) -> "GaussianMixtureTeacher":
        """The study's mixture with `modes` a class: in 2-D the ring, else round Gaussians in directions drawn once."""
        if dimension == 2:
            return cls.interleaved_ring(modes)
        k = np.arange(CLASSES * modes)
        direction = np.random.default_rng(0).standard_normal((len(k), dimension))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        covariances, weights = np.tile(0.1**2 * np.eye(dimension), (len(k), 1, 1)), 1.0 + k // CLASSES
        # The root mean square of a mean's elements is 0.85, that of the ring.
        return cls(0.85 * dimension**0.5 * direction, covariances, k % CLASSES, weights / weights.sum())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (D,)."""
        return (self.means.shape[1],)

    @property
    def num_classes(self) -> int:
        """Number of classes; this number itself is the null condition."""
        return int(self.labels.max()) + 1

    def null_condition(self, condition: Tensor) -> Tensor:
        """The index of the unconditional mixture, in the shape of `condition`."""
        return torch.full_like(condition, self.num_classes)

    def _constants(self, device, dtype) -> dict[str, Tensor]:
        key = (str(device), dtype)
        if key not in self._cache:
            variances, axes = np.linalg.eigh(self.covariances)  # (K, D), (K, D, D)
            alike = bool((self.covariances == variances[:1, :1, None] * np.eye(axes.shape[1])).all())
            member = [*(self.labels == np.arange(self.num_classes)[:, None]), np.full(len(self.labels), True)]
            share = np.where(member, self.weights, 0.0)
            with np.errstate(divide="ignore"):
                log_weights = np.log(share / share.sum(1, keepdims=True))
            values = {
                "variances": variances[..., None],  # (K, D, 1)
                "axes": axes,
                "basis": axes.transpose(0, 2, 1).reshape(-1, axes.shape[1]),  # all K in one matrix product: (K D, D)
                "offset": np.einsum("kd,kde->ke", self.means, axes)[..., None],
                "log_weights": log_weights.T,  # (K, classes + 1)
                "means": self.means,
            } | ({"round": variances[0, 0]} if alike else {})  # one round covariance for all
            self._cache[key] = {k: torch.as_tensor(v, dtype=dtype, device=device) for k, v in values.items()}
        return self._cache[key]

    # The batch is the last axis in here: reductions over few components are then whole-vector operations.

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """log p_t(x | k) (K, B), and C_k(t)^-1 (x - alpha m_k) in the eigenbasis of each k (K, D, B); x is (B, D)."""
        c, D = self._constants(x.device, x.dtype), x.shape[-1]
        alpha, sigma = alpha.reshape(-1), sigma.reshape(-1)
        z = (c["basis"] @ x.T).unflatten(0, (-1, D)) - alpha * c["offset"]
        variance = alpha**2 * c["variances"] + sigma**2
        whitened = z / variance
        # one logarithm is cheaper, but the product of many variances underflows
        log_det = variance.prod(1).log() if D < 8 else variance.log().sum(1)
        log_p = -0.5 * ((z * whitened).sum(1) + log_det + D * np.log(2 * np.pi))
        return log_p, whitened

    def score_at(self, x: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor, guidance: float | Tensor = 1) -> Tensor:
        """Gradient of log p_t(x | c) in x, in closed form, with guidance w; (B, D). `alpha`, `sigma` : (B, 1) or (1,).

        Components share all work, so guidance only mixes their responsibilities.
        """
        c = self._constants(x.device, x.dtype)
        if "round" in c:  # what the components share cancels: two products of (K, D) with (D, B)
            a, variance = alpha.reshape(-1), alpha.reshape(-1) ** 2 * c["round"] + sigma.reshape(-1) ** 2
            log_p = (a * (c["means"] @ x.T) - a**2 * c["means"].square().sum(1, keepdim=True) / 2) / variance
        else:
            log_p, whitened = self._components(x, alpha, sigma)
        responsibility = (c["log_weights"].index_select(1, condition) + log_p).softmax(0)
        if not (isinstance(guidance, (int, float)) and guidance == 1):
            null = (c["log_weights"][:, -1:] + log_p).softmax(0)
            responsibility = null + guidance * (responsibility - null)
        if "round" in c:
            return (a[:, None] * (responsibility.T @ c["means"]) - x) / variance[:, None]
        return -(responsibility[:, None] * whitened).flatten(0, 1).T @ c["basis"]

    def _log_joint(self, x: Tensor, condition: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log p_t(x, k | c) in nats, (K, B)."""
        log_p, _ = self._components(x, alpha, sigma)
        return self._constants(x.device, x.dtype)["log_weights"][:, condition] + log_p

    def log_joint(self, x_0: Tensor, condition: Tensor) -> Tensor:
        """log p(x_0, k | c) in nats for data `x_0` (B, D); (K, B)."""
        return self._log_joint(x_0, condition, x_0.new_ones(1), x_0.new_zeros(1))

    def log_density(self, x_0: Tensor, condition: Tensor) -> Tensor:
        """log p(x_0 | c) in nats for data `x_0` (B, D); (B,)."""
        return self.log_joint(x_0, condition).logsumexp(0)

    def predict_noise(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """eps(x, t, c) = -sigma_t score; `x` (B, D), `t` and `condition` (B,)."""
        return self.guided_noise(x, t, condition, 1)

    def guided_noise(self, x: Tensor, t: Tensor, condition: Tensor, guidance: float | Tensor) -> Tensor:
        """eps_w as :func:`dcm.teacher.guided_noise` has it, at the price of one evaluation."""
        alpha, sigma = self.schedule.alpha(t, x), self.schedule.sigma(t, x)
        return -sigma * self.score_at(x, alpha, sigma, condition, guidance)

    def distance_to_mode(self, x_0: Tensor, k: Tensor) -> Tensor:
        """Mahalanobis distance (B,) of `x_0` (B, D) to component `k` (B,), in standard deviations."""
        c = self._constants(x_0.device, x_0.dtype)
        z = (c["axes"][k].mT @ x_0[..., None]) - c["offset"][k]
        return (z**2 / c["variances"][k]).sum((1, 2)).sqrt()

    def draw(self, generator: torch.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Exact samples x_0 (batch, D) of the whole mixture in float32, and their classes (batch,)."""
        x_0, k = self.draw_class(generator, torch.full((batch,), self.num_classes, device=generator.device))
        return x_0, torch.as_tensor(self.labels, device=generator.device)[k]

    def draw_class(self, generator: torch.Generator, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Exact samples x_0 (B, D) of the classes in `condition` (B,), and their components k (B,)."""
        c = self._constants(generator.device, torch.float32)
        share = c["log_weights"][:, condition].exp().T
        k = torch.multinomial(share, 1, replacement=True, generator=generator)[:, 0]
        noise = torch.randn(len(k), *self.shape, 1, generator=generator, device=generator.device)
        z = c["offset"][k] + c["variances"][k].sqrt() * noise
        return (c["axes"][k] @ z)[..., 0], k


def exact_solution(teacher, x: Tensor, t: int, condition: Tensor, guidance: float, tolerance: float = 1e-10) -> Tensor:
    """The PF-ODE's true solution (B, D) at data from `x` (B, D) at timestep `t`, in float64, to about 1e-8.

    SciPy's DOP853 in float64 on dx/ds = -beta(s)/2 (x + score_w(x, s)), which is smooth down to s = 0. The `teacher`
    has ``score_at`` and a :class:`ContinuousSchedule`; `condition` is (B,), `tolerance` both relative and absolute.
    """
    from scipy.integrate import solve_ivp  # slow to import

    schedule, c = teacher.schedule, condition.cpu()  # SciPy's place

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        y = torch.from_numpy(flat).reshape(x.shape)
        alpha_bar = torch.tensor([schedule.alpha_bar_at(s)], dtype=torch.float64)
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).clamp(min=0).sqrt()
        score = teacher.score_at(y, alpha, sigma, c, guidance)
        return (-schedule.rate_at(s) / 2 * (y + score)).reshape(-1).numpy()

    start = x.cpu().double().reshape(-1).numpy()
    result = solve_ivp(slope, (t / schedule.T, 0.0), start, method="DOP853", rtol=tolerance, atol=tolerance)
    if not result.success:
        raise RuntimeError(f"the reference integrator stopped at t = {t}: {result.message}")
    return torch.from_numpy(result.y[:, -1].copy()).reshape(x.shape).to(x.device)
