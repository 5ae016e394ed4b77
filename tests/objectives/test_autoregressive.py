"""The objective is -log p(text), and no token depends on later ones."""

from itertools import product

import pytest
import torch
from torch import Tensor

from toy_denoiser import Toy
from toy_sampling import causal
from unmask.objectives.autoregressive import NextToken
from unmask.prediction import Prediction

V, L = 3, 3
TEXTS = torch.tensor(list(product(range(V), repeat=L)))


def test_the_terms_of_a_text_sum_to_its_log_probability() -> None:
    """Every token counts, the first too. The probabilities of all texts sum to 1."""
    predictor = causal(V, L).predictor
    loss = NextToken(start_id=0)(predictor, TEXTS, step=0)
    assert loss.per_token.shape == TEXTS.shape and torch.equal(
        loss.weight, torch.ones_like(loss.per_token)
    )
    assert float(torch.exp(-loss.per_token.sum(-1)).sum()) == pytest.approx(1, abs=1e-12)
    for text, terms in zip(TEXTS.tolist(), loss.per_token, strict=True):
        for i, term in enumerate(terms.tolist()):
            assert term == pytest.approx(
                -torch.tensor(predictor.law(tuple(text[:i]))[text[i]]).log().item()
            )


def test_the_network_reads_the_start_and_all_but_the_last() -> None:
    read: list[Tensor] = []

    def network(ids: Tensor) -> Prediction:
        read.append(ids)
        return Prediction.from_log_p(torch.zeros(*ids.shape, V))

    NextToken(start_id=2)(network, TEXTS, step=0)
    [ids] = read
    assert torch.equal(ids[:, 1:], TEXTS[:, :-1]) and ids[:, 0].unique().tolist() == [2]


def test_gradients_and_methods() -> None:
    objective, student = NextToken(start_id=0), Toy(V)
    objective(
        lambda ids: student(ids, torch.ones(len(ids))), TEXTS, step=0
    ).per_token.sum().backward()
    assert all(bool(weight.grad.any()) for weight in student.parameters())
    assert (
        objective.networks() == {} and objective.frozen() == {} and objective.turn(0) == "student"
    )
    objective.prepare(0, student)
