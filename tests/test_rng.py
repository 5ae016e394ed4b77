"""Counter-based random numbers: uniform, independent, and fixed for ever.

A change here changes every sample that is drawn.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, gumbel_r, kstest
from torch import Tensor

from unmask import rng
from unmask.rng import address, generator, global_generators, gumbel, mix_, stratified, uniform

KEYS = st.integers(-(2**63), 2**63 - 1)
EVERY_BIT = 2**64 - 1


def splitmix64(state: int) -> int:
    """The output function of SplitMix64 as Steele, Lea and Flood print it, on Python's integers."""
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & EVERY_BIT
    state = (state ^ state >> 27) * 0x94D049BB133111EB & EVERY_BIT
    return state ^ state >> 31


def signed(bits: int) -> int:
    return bits - 2**64 if bits >> 63 else bits


def draws(*keys: Tensor | int) -> Tensor:
    return uniform(address(*keys)).flatten()


def test_published_outputs_of_splitmix64() -> None:
    """The first five numbers of the generator with seed 1234567.

    Its state grows by 2^64 / golden ratio.
    """
    states = [signed((1234567 + i * 0x9E3779B97F4A7C15) & EVERY_BIT) for i in range(1, 6)]
    assert [bits & EVERY_BIT for bits in mix_(torch.tensor(states)).tolist()] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431,
        16408922859458223821,
    ]  # fmt: skip


@given(st.lists(KEYS, min_size=1, max_size=8))
def test_mix_is_splitmix64_on_any_integers(states: list[int]) -> None:
    assert mix_(torch.tensor(states)).tolist() == [
        signed(splitmix64(state & EVERY_BIT)) for state in states
    ]


def test_addresses_never_change() -> None:
    """Published samples, latents and shuffles use these numbers."""
    assert address(0).item() == -2152535657050944081
    assert address(1, 2, 3).item() == 5423257105290009525
    assert address(-(2**63), 2**63 - 1).item() == 5685096821213950938
    three = address(7, torch.arange(3))
    assert three.tolist() == [-685143093399107527, 1159592458079169848, -9128039971385649262]
    assert uniform(three).tolist() == [0.9628583184836624, 0.06286163311236204, 0.5051679616244579]
    noise = [3.2741506361761297, -1.0176983816487988, 0.3814591101170671]
    assert gumbel(three).tolist() == pytest.approx(noise, rel=1e-12)


@given(st.lists(KEYS, min_size=1, max_size=4), KEYS)
def test_an_address_depends_on_each_key_and_on_their_order(keys: list[int], other: int) -> None:
    home = address(*keys)
    assert home.dtype == torch.int64 and home.shape == ()
    for place, key in enumerate(keys):
        if key != other:
            assert address(*keys[:place], other, *keys[place + 1 :]) != home
    if keys[0] != keys[-1]:
        assert address(*keys[::-1]) != home


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5), st.lists(KEYS, min_size=1, max_size=4)
)
def test_tensors_of_keys_broadcast(rows: list[int], columns: list[int]) -> None:
    """Each number depends on its own address only, not on shape, batch or order."""
    table = address(5, torch.tensor(rows)[:, None], torch.tensor(columns), 9)
    assert table.shape == (len(rows), len(columns))
    assert table.tolist() == [
        [address(5, row, column, 9).item() for column in columns] for row in rows
    ]
    assert torch.equal(
        address(5, torch.tensor(rows[::-1])[:, None], torch.tensor(columns), 9), table.flip(0)
    )


def test_no_two_addresses_collide() -> None:
    """A million addresses over small keys, as they are used.

    By chance one expects no collision in 2^64.
    """
    grid = address(torch.arange(16)[:, None, None], torch.arange(256)[:, None], torch.arange(256))
    assert len(grid.unique()) == grid.numel() == 2**20


@pytest.mark.parametrize(
    "keys",
    [(torch.arange(50_000),), (3, torch.arange(50_000)), (torch.arange(50_000), 0, 1)],
    ids=["seed", "i", "row"],
)
def test_draws_are_uniform_also_in_their_low_bits(keys: tuple[Tensor | int, ...]) -> None:
    u = draws(*keys)
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    assert kstest((u * 2**20 % 1).numpy(), "uniform").pvalue > 1e-3
    pairs = (u[:-1] * 8).long() * 8 + (u[1:] * 8).long()  # neighbouring keys are unrelated
    assert chisquare(torch.bincount(pairs, minlength=64).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("other", [(1,), (0, 0), (2, 5), (-1, 7)])
def test_streams_are_independent(other: tuple[int, ...]) -> None:
    """Numbers under different prefixes are independent: a chi-square test on 16 x 16 cells."""
    i = torch.arange(50_000)
    cells = (draws(0, i) * 16).long() * 16 + (draws(*other, i) * 16).long()
    assert chisquare(torch.bincount(cells, minlength=256).numpy()).pvalue > 1e-3


def test_every_bit_of_a_key_flips_half_of_the_address() -> None:
    i = torch.arange(200)
    for keys in (lambda x: (x, 4, 2), lambda x: (4, x, 2), lambda x: (4, 2, x)):
        for bit in (0, 1, 31, 62):
            flipped = address(*keys(i)) ^ address(*keys(i ^ 1 << bit))
            share = sum(bin(bits & EVERY_BIT).count("1") for bits in flipped.tolist()) / (64 * 200)
            assert abs(share - 0.5) < 4 * 0.5 / (64 * 200) ** 0.5


def test_the_interval_is_open_at_both_ends() -> None:
    ends = uniform(torch.tensor([0, -1, 2**63 - 1, -(2**63)]))
    assert ends.dtype == torch.float64
    assert ends.tolist() == [2.0**-53, 1 - 2.0**-53, 0.5 - 2.0**-53, 0.5 + 2.0**-53]
    assert bool(gumbel(torch.tensor([0, -1])).isfinite().all())


def test_gumbel_max() -> None:
    """arg max_v (log p_v + G_v) draws v with probability p_v."""
    i, v = torch.arange(20_000), torch.arange(4)
    noise = gumbel(address(11, i[:, None], v))
    assert noise.dtype == torch.float64
    assert kstest(noise.flatten().numpy(), gumbel_r.cdf).pvalue > 1e-3
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    winners = torch.bincount((p.log() + noise).argmax(-1), minlength=4)
    assert chisquare(winners.numpy(), (len(i) * p).numpy()).pvalue > 1e-3


@given(st.integers(1, 50), st.integers(0, 2**31))
def test_stratified_puts_one_number_in_each_stratum(n: int, seed: int) -> None:
    t = stratified(n, torch.Generator().manual_seed(seed))
    assert (
        t.shape == (n,) and t.dtype == torch.float64 and float(t.min()) >= 0 and float(t.max()) < 1
    )
    assert sorted((t * n).long().tolist()) == list(range(n))
    assert torch.equal(t, stratified(n, torch.Generator().manual_seed(seed)))


def test_stratified_numbers_are_uniform_one_by_one() -> None:
    """A loss over one sequence is unbiased, whatever its position in the batch."""
    generator = torch.Generator().manual_seed(0)
    table = torch.stack([stratified(8, generator) for _ in range(2000)])
    for place in (0, 3, 7):
        assert kstest(table[:, place].numpy(), "uniform").pvalue > 1e-3
    spread_of_means = float(table.mean(-1).std())
    assert spread_of_means < 0.5 * math.sqrt(1 / 12 / 8), (
        "strata halve the noise of a mean, at least"
    )


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(1, torch.arange(9))
    stratified(4, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def words(made: torch.Generator) -> np.ndarray:
    """The 624 words of 32 bits that a CPU generator holds."""
    held = made.get_state().view(torch.int64)[3 : 3 + 624].numpy()
    assert ((held >= 0) & (held < 2**32)).all()
    return held.astype(np.uint32)


def first_number(made: torch.Generator) -> int:
    """Its first draw of 64 bits."""
    return int(torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=made))


@given(st.lists(KEYS, min_size=1, max_size=3))
def test_a_generator_is_the_mersenne_twister_of_its_address(keys: list[int]) -> None:
    """The words are halves of the hashed address, and the numbers are those of numpy's MT19937."""
    seed = address(*keys).item()
    hashed = [bits & EVERY_BIT for bits in address(seed, torch.arange(312)).tolist()]
    halves = [half for bits in hashed for half in (bits & 0xFFFFFFFF, bits >> 32)]
    made = generator(*keys)
    assert words(made).tolist() == halves and made.initial_seed() == seed & EVERY_BIT
    twister = np.random.MT19937()
    twister.state = {
        "bit_generator": "MT19937",
        "state": {"key": np.array(halves, dtype=np.uint32), "pos": 624},
    }
    raw = twister.random_raw(1300)  # over two turns of the 624 words
    assert (torch.rand(1300, generator=made) * 2**24).tolist() == (raw % 2**24).tolist()
    assert first_number(generator(*keys)) & EVERY_BIT == int(raw[0]) << 32 | int(raw[1])


def test_addresses_with_equal_low_halves_have_different_streams() -> None:
    """torch's own seeding keeps the low 32 bits.

    Of 2,000,000 addresses some 900 would share their numbers with another.
    """
    hashed, low = address(11, torch.arange(2_000_000)), 2**32
    order = hashed.remainder(low).argsort()
    equal = hashed[order].remainder(low).diff() == 0
    keys = order[
        torch.cat([equal, equal.new_zeros(1)]) | torch.cat([equal.new_zeros(1), equal])
    ].tolist()
    assert len(keys) > 700
    assert len(
        {first_number(torch.Generator().manual_seed(int(hashed[key]))) for key in keys}
    ) < 0.6 * len(keys)
    assert len({first_number(generator(11, key)) for key in keys}) == len(keys)


def test_first_draws_of_generators_are_uniform_and_unrelated() -> None:
    u = torch.cat(
        [torch.rand(1, dtype=torch.float64, generator=generator(3, i)) for i in range(4000)]
    )
    assert kstest(u.numpy(), "uniform").pvalue > 1e-3
    cells = (u[:-1] * 8).long() * 8 + (u[1:] * 8).long()
    assert chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-3


def test_normal_numbers_begin_at_the_address_too() -> None:
    """A CPU generator keeps the second of a pair of normal numbers.

    The first call must not use one.
    """
    one = torch.randn(1, generator=generator(2)).item()
    with global_generators(2):
        assert torch.randn(1).item() == one
        with global_generators(2):
            assert torch.randn(1).item() == one


def test_an_unknown_layout_of_the_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted:
        def manual_seed(self, seed: int) -> "Shifted":
            return self

        def get_state(self) -> Tensor:
            return state.roll(8)

    state = rng._new_state.__wrapped__()
    assert torch.equal(state, torch.Generator().manual_seed(5489).get_state())
    monkeypatch.setattr(torch, "Generator", Shifted)
    with pytest.raises(RuntimeError, match=torch.__version__.split("+")[0]):
        rng._new_state.__wrapped__()


def test_global_generators_are_a_function_of_the_address_and_restored() -> None:
    before = torch.get_rng_state()
    with global_generators(4, 1):
        one = torch.nn.functional.dropout(torch.ones(64))
    with pytest.raises(KeyError), global_generators(4, 1):
        assert torch.equal(one, torch.nn.functional.dropout(torch.ones(64)))
        raise KeyError
    with global_generators(4, 2):
        assert not torch.equal(one, torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 10**39])
def test_a_seed_has_64_bits(seed: int) -> None:
    for draw in (lambda: address(0, seed), lambda: generator(seed)):
        with pytest.raises(
            ValueError, match=f"^seed, or a key of an address, is too (small|large): got {seed}"
        ):
            draw()
    assert address(2**63 - 1) != address(-(2**63))
