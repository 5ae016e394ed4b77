import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.evaluation import metrics

TABLES = st.integers(1, 4).flatmap(
    lambda rows: st.integers(3, 9).flatmap(
        lambda length: st.lists(
            st.lists(st.sampled_from([0, 1, 2, 50256]), min_size=length, max_size=length),
            min_size=rows,
            max_size=rows,
        )
    )
)


def ngrams(row, n):
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def entropy_of(items):
    counts = Counter(items).values()
    total = sum(counts)
    return -sum(c / total * math.log(c / total) for c in counts)


@given(TABLES, st.integers(1, 3))
def test_every_count_equals_the_obvious_one(table, n):
    tokens = torch.tensor(table)
    own = [ngrams(row, n) for row in table]
    everything = [gram for row in own for gram in row]

    def close(tensor, expected):
        torch.testing.assert_close(tensor, torch.tensor(expected, dtype=torch.float64))

    close(metrics.entropy(tokens), [entropy_of(row) for row in table])
    close(metrics.pooled_entropy(tokens, n).mean(), entropy_of(everything))
    close(metrics.repetition(tokens, n), [1 - len(set(row)) / len(row) for row in own])
    close(metrics.distinct_n(tokens, n).mean(), len(set(everything)) / len(everything))
    if len(table) > 1:
        shared = [
            [sum(gram in set(b) for gram in a) / len(a) for j, b in enumerate(own) if j != i]
            for i, a in enumerate(own)
        ]
        close(metrics.overlap(tokens, n), [sum(row) / len(row) for row in shared])


def test_hand_made_cases():
    assert metrics.entropy(torch.tensor([[3, 3, 3, 3], [1, 2, 3, 4]])).tolist() == pytest.approx(
        [0, math.log(4)]
    )
    one = torch.arange(8).expand(5, 8)  # one text for every seed: healthy inside, nothing between
    assert metrics.entropy(one).mean() == pytest.approx(math.log(8))
    assert metrics.pooled_entropy(one).mean() == pytest.approx(math.log(5))
    assert metrics.overlap(one).tolist() == [1.0] * 5
    assert metrics.distinct_n(one, 4).mean() == pytest.approx(1 / 5)
    assert metrics.overlap(torch.arange(40).view(5, 8)).tolist() == [0.0] * 5


def test_grams_with_equal_sums_stay_distinct():
    big = 200_000
    tokens = torch.tensor([[0, big, 1, 0, big, 0, 1]])
    assert metrics.grams(tokens, 2).unique().numel() == 5


def test_the_pooled_values_carry_the_error_of_the_entropy():
    generator, law = torch.Generator().manual_seed(0), torch.tensor([0.6, 0.3, 0.1])
    draws = [
        metrics.pooled_entropy(
            torch.multinomial(law, 60 * 12, True, generator=generator).view(60, 12), 2
        )
        for _ in range(300)
    ]
    spread = torch.stack([values.mean() for values in draws]).std()
    claimed = torch.stack([values.std() / math.sqrt(60) for values in draws]).mean()
    assert claimed == pytest.approx(float(spread), rel=0.15)


@pytest.mark.parametrize("n", [0, 5])
def test_ngrams_that_do_not_exist_are_refused(n):
    with pytest.raises(ValueError, match="1 <= n <= L"):
        metrics.repetition(torch.zeros(2, 4, dtype=torch.int64), n)


def test_disagreement_by_hand_and_unbiased():
    assert metrics.disagreement(torch.tensor([[1, 7], [1, 8], [1, 8]])) == pytest.approx(
        (0 + 2 / 3) / 2
    )
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    draws = torch.multinomial(
        p, 4 * 20000, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    assert metrics.disagreement(draws.view(4, -1)) == pytest.approx(
        float(1 - (p**2).sum()), abs=0.01
    )


def test_half_masked_covers_half_of_each_text_always_the_same():
    texts = torch.arange(40).view(4, 10)
    pinned = metrics.half_masked(texts)
    assert (pinned == -1).sum(1).tolist() == [5] * 4
    assert torch.equal(pinned[pinned >= 0], texts[pinned >= 0])
    assert torch.equal(pinned, metrics.half_masked(texts))
    assert not torch.equal(pinned, metrics.half_masked(texts, seed=1))
    assert len({tuple(row) for row in (pinned == -1).tolist()}) > 1


def test_completion_disagreement_tells_a_mode_seeker_from_a_sampler():
    texts = torch.randint(5, (3, 12), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)

    def sampler(pinned):
        return torch.where(
            pinned == -1, torch.randint(4, pinned.shape, generator=generator), pinned
        )

    mode = metrics.completion_disagreement(lambda pinned: pinned.clamp(min=0), texts)
    assert mode.tolist() == [0.0] * 3
    drawn = metrics.completion_disagreement(sampler, texts, completions=64)
    assert drawn.mean() == pytest.approx(0.75, abs=0.02)


def test_a_completion_that_changes_the_text_is_refused():
    texts = torch.ones(1, 6, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"complete .*got \(16, 6\)"):
        metrics.completion_disagreement(torch.zeros_like, texts)
    with pytest.raises(ValueError, match=r"share .* got 0\.0"):
        metrics.completion_disagreement(torch.ones_like, texts, share=0.0)
    with pytest.raises(ValueError, match=r"completions .* got 1"):
        metrics.completion_disagreement(torch.ones_like, texts, completions=1)
