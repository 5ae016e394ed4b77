"""The bound of whole texts against enumeration of all texts and all corruptions.

V = 3 tokens (and MASK), L = 2, eps = 0.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from reference import (
    Table,
    process_bound_by_orders,
    process_bound_in_steps,
    process_channel,
    process_leave_one_out,
    process_texts,
)
from unmask.diffusion.processes import MaskedProcess, Process, UniformProcess
from unmask.diffusion.schedules import Cosine, LogLinear, NoiseSchedule, Polynomial
from unmask.prediction import Prediction

MASKED, UNIFORM = MaskedProcess(4, mask_id=3), UniformProcess(3)
BOTH = pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def source(process: Process, seed: int = 0) -> Tensor:
    """A joint law of two dependent tokens, none of them MASK."""
    size = 3
    joint = torch.zeros((size + (process is MASKED),) * 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    joint[:size, :size] = torch.rand(size, size, generator=generator, dtype=torch.float64) ** 2
    return joint / joint.sum()


def noise_of(process: Process) -> Tensor:
    return double(0, 0, 0, 1) if process is MASKED else torch.full((3,), 1 / 3).double()


def brute_force(
    process: Process, joint: Tensor, table: Table, schedule: NoiseSchedule, nodes: int
) -> float:
    """The mean over texts and corruptions of the summed bound, integrated over t by Gauss's rule.

    The nodes are those of sqrt(t), because the uniform process has a log t near 0.
    """
    texts = process_texts(process.vocab_size, joint.dim())
    weight = joint[tuple(texts.T)]
    pairs = torch.cartesian_prod(torch.arange(len(texts))[weight > 0], torch.arange(len(texts)))
    x0, z = texts[pairs[:, 0]], texts[pairs[:, 1]]
    total = 0.0
    for node, share in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        root = (node + 1) / 2
        t = double(root**2).expand(len(pairs))
        alpha, slope = schedule.alpha(t), schedule.dalpha(t)
        seen = process_channel(noise_of(process), float(alpha[0]))[x0, z].prod(-1)
        log_p = table(texts, float(alpha[0]))[pairs[:, 1]]
        nelbo = process.nelbo(Prediction.from_log_p(log_p), x0, z, alpha, slope).sum(-1)
        total += share * root * float((weight[pairs[:, 0]] * seen * nelbo).nan_to_num().sum())
    return total


def exact(process: Process, joint: Tensor) -> Table:
    return lambda z, alpha: process_leave_one_out(joint, noise_of(process), z, alpha).log()


def wrong(process: Process, joint: Tensor) -> Table:
    """A wrong model: half of the true logits, and a bias to token 1."""

    def table(z: Tensor, alpha: float) -> Tensor:
        log_p = exact(process, joint)(z, alpha) / 2
        log_p[..., 1] += 0.7
        return torch.log_softmax(log_p, dim=-1)

    return table


@BOTH
@pytest.mark.parametrize("schedule", [LogLinear(0.0), Cosine(0.0), Polynomial(2.0, 0.0)], ids=repr)
def test_exact_conditionals_cost_the_entropy(process: Process, schedule: NoiseSchedule) -> None:
    joint = source(process)
    entropy = -float(torch.xlogy(joint, joint).sum())
    bound = brute_force(process, joint, exact(process, joint), schedule, nodes=24)
    assert bound == pytest.approx(entropy, abs=1e-9 if process is MASKED else 1e-5)


@BOTH
def test_a_wrong_model_costs_the_sum_of_its_steps(process: Process) -> None:
    """The integral is the limit of the N-step bound, which decreases as 1 / N.

    It is above the entropy.
    """
    joint = source(process, seed=1)
    table = wrong(process, joint)
    bound = brute_force(process, joint, table, LogLinear(0.0), nodes=24)
    in_steps = [
        process_bound_in_steps(joint, noise_of(process), table, [k / n for k in range(n + 1)])
        for n in (40, 80)
    ]
    assert in_steps[0] > in_steps[1] > bound
    assert 2 * in_steps[1] - in_steps[0] == pytest.approx(bound, abs=1e-3)
    assert bound > -float(torch.xlogy(joint, joint).sum()) + 0.05


def test_masked_diffusion_is_the_mean_over_orders() -> None:
    joint = source(MASKED, seed=2)
    for table in (exact(MASKED, joint), wrong(MASKED, joint)):
        # A polynomial in t: 6 nodes are exact.
        bound = brute_force(MASKED, joint, table, LogLinear(0.0), nodes=6)
        assert bound == pytest.approx(process_bound_by_orders(joint, table, mask_id=3), abs=1e-12)
