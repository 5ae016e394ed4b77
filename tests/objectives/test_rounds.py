"""Everything about a round is a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.objectives.rounds import PAPER_TEMPERATURES, Rounds

taus = st.lists(st.floats(0.1, 2), min_size=1, max_size=6).map(tuple)
rounds = st.builds(Rounds, st.integers(1, 50), st.just(1 / 512), taus)


def test_the_papers_five_rounds() -> None:
    """Latent Shadows, section 4: 5 x 10k steps, delta 1/512 .. 1/32, tau .96 .. .84."""
    paper = Rounds(10_000)
    starts = [step for step in range(50_001) if paper.starts(step)]
    assert (
        starts == [0, 10_000, 20_000, 30_000, 40_000] and paper.total == 50_000 and paper.count == 5
    )
    assert [paper.delta(step) for step in starts] == [1 / 512, 1 / 256, 1 / 128, 1 / 64, 1 / 32]
    assert (
        [paper.temperature(step) for step in starts]
        == [0.96, 0.93, 0.90, 0.87, 0.84]
        == list(PAPER_TEMPERATURES)
    )


@given(rounds)
def test_a_round_is_constant_and_starts_once(plan: Rounds) -> None:
    steps = range(plan.total + 2 * plan.round_steps)
    assert [step for step in steps if plan.starts(step)] == list(
        range(0, plan.total, plan.round_steps)
    )
    for step in steps:
        here = (plan.round(step), plan.delta(step), plan.temperature(step))
        assert here == (plan.round(step), plan.delta(step), plan.temperature(step)), "pure"
        assert here[0] == min(step // plan.round_steps, plan.count - 1)
        assert here[1] == plan.delta0 * 2 ** here[0] and here[2] == plan.temperatures[here[0]]
        if step and not plan.starts(step):
            assert plan.round(step - 1) == here[0], (
                "nothing changes inside a round, nor after the last"
            )


def test_steps_may_come_in_any_order() -> None:
    """A resumed run calls step 7 first."""
    plan = Rounds(3, 1 / 16, (0.9, 0.8))
    forward = [plan.delta(step) for step in range(9)]
    assert [plan.delta(step) for step in reversed(range(9))] == forward[::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "round_steps is out of range: got 0"),
        ((5, 1 / 8, ()), "temperatures .*got 0 rounds"),
        ((5, 1 / 8, (0.9, 0.0)), r"temperatures .*got \(0.9, "),
        ((5, 1 / 8, (0.9, float("nan"))), r"temperatures .*got \(0.9, "),
        ((5, 0.0), "delta0 .*got 0.0"),
        ((5, -0.1), "delta0 .*got -0.1"),
        (
            (5, 1 / 8, (0.9,) * 4),
            r"temperatures .*got 4 rounds, want 1 \.\. 3, .*delta0 = 0.125",
        ),
    ],
)
def test_wrong_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rounds(*arguments)


def test_one_round_may_reach_half_of_the_way() -> None:
    assert Rounds(1, 0.5, (1.0,)).delta(100) == 0.5
