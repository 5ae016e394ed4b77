"""The checks of `unmask verify`: they pass on the library, and each fails if its claim is false."""

import math
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from unmask.diffusion import duality
from unmask.diffusion.schedules import Cosine
from unmask.diffusion.trajectory import Trajectory
from unmask.experiments.exact import duality_checks
from unmask.experiments.exact.duality_checks import (
    PAIR,
    TRIPLE,
    Check,
    examine,
    integral_transform,
    observe,
    pattern_probabilities,
)

N = 4000
MANY = 20_000  # an error of a few percent, as K + 1 for K = 6, is then many standard errors
NAMES = [
    "no signal keeps 1/K",
    "calibrated marginals",
    "F_Y(Y) is uniform",
    "joint law at 2 times",
    "joint law at 3 times",
    "one scalar locks the path",
    "once masked, stays masked",
    "visible sets are nested",
]


def run_checks(size: int, n: int, seed: int) -> list[Check]:
    return examine(observe(size, n, seed))


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize(("size", "n"), [(2, 100), (2, N), (7, N), (100, N), (5000, 1000)])
def test_the_duality_holds(size: int, n: int) -> None:
    checks = run_checks(size, n, seed=1)
    assert [check.name for check in checks] == NAMES
    assert failed(checks) == set()
    assert all(
        math.isfinite(check.error) and check.error <= 6 * check.expected_error for check in checks
    )


def test_it_holds_for_any_schedule_also_below_the_edge() -> None:
    observation = observe(3, N, seed=2, schedule=Cosine())
    assert (
        float(observation.alpha.min()) < 1 / 3
    )  # negative snr_root: no SNR, the identity holds all the same
    assert failed(examine(observation)) == set()


def test_equal_seeds_give_equal_checks() -> None:
    assert run_checks(9, 200, seed=3) == run_checks(9, 200, seed=3) != run_checks(9, 200, seed=4)


def test_p_values_are_uniform_over_seeds() -> None:
    """Bonferroni's p may be too large (conservative), but never too small."""
    values: dict[str, list[float]] = {}
    for seed in range(40):
        for check in run_checks(4, 400, seed):
            if check.p_value is not None:
                values.setdefault(check.name, []).append(check.p_value)
    for name in ("F_Y(Y) is uniform", "joint law at 2 times", "joint law at 3 times"):
        assert stats.kstest(values[name], "uniform").pvalue > 1e-3, name
    assert (
        stats.kstest(values["calibrated marginals"], "uniform", alternative="greater").pvalue > 1e-3
    )


# Mutations: each changes one thing, and the named checks must fail.


def blind_project(w: Tensor, x0: Tensor, mask_id: int) -> Tensor:
    """Ignores one coordinate."""
    without = w.scatter(-1, ((x0 + 1) % w.shape[-1])[:, None], -math.inf)
    return duality.project(without, x0, mask_id)


def positive_project(w: Tensor, x0: Tensor, mask_id: int) -> Tensor:
    """Uses the sign of x0's coordinate instead of its rank."""
    return torch.where(w.gather(-1, x0[:, None]).squeeze(-1) > 0, x0, mask_id)


def smallest_project(w: Tensor, x0: Tensor, mask_id: int) -> Tensor:
    """Keeps the token while its coordinate is the smallest."""
    return duality.project(-w, x0, mask_id)


def argmax_project(w: Tensor, x0: Tensor, mask_id: int) -> Tensor:
    """Duo's projection: the greatest coordinate's own token, no MASK."""
    return w.argmax(-1)


def forgetful_path(x0: Tensor, eps: Tensor, root: Tensor) -> Tensor:
    """New noise at every time: right marginals, no path."""
    return duality.ddim_path(x0, torch.randn_like(eps), root)


def unscaled_path(x0: Tensor, eps: Tensor, root: Tensor) -> Tensor:
    """Leaves sigma~ out."""
    alpha, _ = duality.coefficients(root)
    return eps.scatter_add(-1, x0[:, None], alpha.expand(len(x0), 1))


def off_by_one_root(keep: Tensor, size: int) -> Tensor:
    return duality.snr_root(keep, size + 1)


def off_by_one_keep(root: Tensor | float, size: int) -> Tensor:
    return duality.keep_probability(root, size + 1)


def absolute_margin(eps: Tensor, x0: Tensor) -> Tensor:
    return duality.margin(eps, x0).abs()


LAWS = {"joint law at 2 times", "joint law at 3 times"}
PATHS = {"one scalar locks the path", "once masked, stays masked"}
MUTATIONS: list[tuple[str, Callable[..., Tensor], set[str]]] = [
    ("project", blind_project, {"calibrated marginals", "one scalar locks the path"} | LAWS),
    ("project", positive_project, {"calibrated marginals", "one scalar locks the path"} | LAWS),
    ("project", smallest_project, {"calibrated marginals", *PATHS} | LAWS),
    ("project", argmax_project, {"one scalar locks the path"}),
    ("ddim_path", forgetful_path, PATHS | LAWS),
    ("ddim_path", unscaled_path, {"calibrated marginals", "one scalar locks the path"} | LAWS),
    ("snr_root", off_by_one_root, {"calibrated marginals", "one scalar locks the path"}),
    (
        "keep_probability",
        off_by_one_keep,
        {"no signal keeps 1/K", "F_Y(Y) is uniform", "one scalar locks the path"},
    ),
    ("margin", absolute_margin, {"F_Y(Y) is uniform", "one scalar locks the path"}),
]


@pytest.mark.parametrize(
    ("name", "mutant", "expected"), MUTATIONS, ids=[mutant.__name__ for _, mutant, _ in MUTATIONS]
)
def test_a_wrong_gaussian_side_fails_the_checks(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., Tensor], expected: set[str]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(duality_checks, name, mutant)
    assert expected <= failed(run_checks(6, MANY, seed=5))


def test_a_wrong_scalar_side_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    class Independent(Trajectory):
        """A new u at every call: independent masks."""

        def at(self, alpha: Tensor) -> Tensor:
            u = torch.rand(self.u.shape, generator=generator, dtype=torch.float64)
            return torch.where(u < alpha[:, None], self.x0, self.noise)

    class Inverted(Trajectory):
        def at(self, alpha: Tensor) -> Tensor:
            return torch.where(self.u >= alpha[:, None], self.x0, self.noise)

    monkeypatch.setattr(duality_checks, "Trajectory", Independent)
    assert failed(run_checks(6, N, seed=6)) == LAWS | {
        "one scalar locks the path",
        "visible sets are nested",
    }
    monkeypatch.setattr(duality_checks, "Trajectory", Inverted)
    assert failed(run_checks(6, N, seed=6)) == LAWS | {
        "one scalar locks the path",
        "visible sets are nested",
    }


def test_one_exception_fails_an_exact_check() -> None:
    observation = observe(5, 500, seed=7)
    row = int((observation.z[0] == 4).nonzero()[0])  # masked at the first time
    z, free = observation.z.clone(), observation.free.clone()
    z[3, row] = observation.x0[row]
    assert failed(examine(replace(observation, z=z))) == PATHS
    visible = int((free[0] != 4).nonzero()[0])
    free[0, visible] = (observation.x0[visible] + 1) % 4  # visible, but not x0
    checks = examine(replace(observation, free=free))
    assert failed(checks) == {"visible sets are nested"}
    assert checks[-1].statistic == 1 and checks[-1].error == 1 / 500


# The statistics, against their definition.


@pytest.mark.parametrize("power", [0.9, 1.0, 1.15])
def test_kolmogorov_smirnov(power: float) -> None:
    n = 400
    u = torch.rand(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) ** power
    check = integral_transform(replace(observe(3, n, seed=0), u=u))
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    empirical = torch.searchsorted(u.sort().values, grid, right=True) / n
    assert check.statistic == pytest.approx(float((empirical - grid).abs().max()), abs=2e-5)
    limit = stats.kstwobign.sf(check.statistic * math.sqrt(n))
    assert check.p_value == pytest.approx(limit, abs=0.05)


def test_a_missing_scipy_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ModuleNotFoundError, match=r"scipy.*unmask\[demo\]"):
        run_checks(4, 100, seed=0)


def test_joint_law_is_the_two_sample_chi_square() -> None:
    observation = observe(4, 600, seed=8)
    counts = [observation.patterns(z, PAIR)[[0, 2, 3]] for z in (observation.z, observation.free)]
    truth = stats.chi2_contingency(torch.stack(counts).numpy())
    check = duality_checks.joint_law(observation, PAIR)
    assert (check.statistic, check.p_value) == pytest.approx(
        (truth.statistic, truth.pvalue), rel=1e-9
    )


@pytest.mark.parametrize("times", [PAIR, TRIPLE])
def test_measured_patterns_agree_with_the_theory(times: tuple[int, ...]) -> None:
    observation = observe(50, N, seed=9)
    theory = pattern_probabilities(observation.alpha[list(times)])
    assert float(theory.sum()) == pytest.approx(1)
    for z in (observation.z, observation.free):
        shares = observation.patterns(z, times) / N
        assert float(shares.sum()) == pytest.approx(1)
        assert float((shares - theory).abs().max()) < 0.05
    for code, probability in enumerate(theory.tolist()):
        assert (probability == 0) == ("01" in f"{code:0{len(times)}b}"), "masked, then visible"


def test_pattern_probabilities_by_hand() -> None:
    alpha = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert pattern_probabilities(alpha).tolist() == [0.25, 0, 0.5, 0.25]


def test_a_check_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        run_checks(3, 100, seed=0)[0].passed = False  # type: ignore[misc]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"n .*got 99.* 100"):
        run_checks(10, 99, seed=0)
    with pytest.raises(ValueError, match=r"vocab_size .*got 1\b.*K >= 2"):
        run_checks(1, 100, seed=0)
