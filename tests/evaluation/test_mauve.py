"""MAUVE: near 1 for similar sets, near 0 for different ones, deterministic; and its features."""

import sys

import pytest
import torch

import unmask
from unmask.evaluation.judges import LanguageModelJudge
from unmask.evaluation.mauve import mauve, mauve_against
from unmask.evaluation.measure import JudgeId


def cloud(seed: int, shift: float = 0.0, n: int = 300) -> torch.Tensor:
    """n points around eight places on a sphere of 6 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randn(8, 6, generator=torch.Generator().manual_seed(7)) + shift
    return places[torch.randint(8, (n,), generator=generator)] + 0.1 * torch.randn(
        n, 6, generator=generator
    )


def test_the_same_law_is_near_one_and_another_near_nought() -> None:
    pytest.importorskip("mauve", reason="pip install 'unmask[mauve]'")
    alike, apart = mauve(cloud(0), cloud(1), seeds=3), mauve(cloud(0), cloud(1, shift=5.0), seeds=3)
    assert alike.value > 0.9 and apart.value < 0.05
    assert alike.n == 3 and alike.sem is not None and "MAUVE of 300 texts" in alike.unit
    assert mauve(cloud(0), cloud(1), seeds=3) == alike
    assert mauve_against(lambda texts: texts, cloud(0), seeds=3)(cloud(1)) == alike
    few = cloud(0, n=64)
    assert mauve(few, few, seeds=4).value == 1 and mauve(few, few, seeds=4).sem == 0, (
        "one and the same set"
    )
    half = torch.cat([cloud(1, n=150), cloud(2, shift=5.0, n=150)])
    assert apart.value < mauve(cloud(0), half, seeds=3).value < alike.value


def test_what_it_cannot_compare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for real, drawn in (
        (cloud(0, n=19), cloud(1)),
        (cloud(0), cloud(1)[:, :5]),
        (cloud(0)[:, 0], cloud(1)[:, 0]),
    ):
        with pytest.raises(ValueError, match=r"real or drawn .* 20 texts"):
            mauve(real, drawn)
    with pytest.raises(ValueError, match=r"seeds .* got 0"):
        mauve(cloud(0), cloud(1), seeds=0)
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'unmask\[mauve\]'"):
        mauve(cloud(0), cloud(1))


def test_features_are_the_last_hidden_state_of_each_text_by_itself() -> None:
    teacher, network = unmask.load("unmask:teacher"), unmask.load("unmask:judge").network
    judge = unmask.judge("unmask:judge", teacher.tokenizer, length=128)
    assert isinstance(judge, LanguageModelJudge) and judge.identity.prefixed
    rows = torch.randint(1, 1000, (5, 12), generator=torch.Generator().manual_seed(0))
    features_of_rows = judge.features(rows)
    assert features_of_rows.shape == (5, network.shape.width)
    for row, features in zip(rows, features_of_rows, strict=True):
        alone = network.hidden(torch.cat([torch.tensor([0]), row])[None])[0, -1]
        torch.testing.assert_close(features, alone.detach(), atol=1e-4, rtol=1e-4)


def test_texts_of_unequal_length_and_judges_without_states() -> None:
    stamp = JudgeId("stub", "0", "float32", 4, True, False, "all")
    seen: list[torch.Tensor] = []

    def hidden(ids: torch.Tensor) -> torch.Tensor:
        seen.append(ids)
        return ids[..., None].double()

    def judge(states: object) -> LanguageModelJudge:
        encode = lambda text: [ord(letter) for letter in text]  # noqa: E731
        return LanguageModelJudge(
            stamp, 200, lambda ids: ids, encode, None, batch_size=2, hidden=states
        )  # type: ignore

    assert judge(hidden).features(["ab", "c", "defghi"]).flatten().tolist() == [
        ord("b"),
        ord("c"),
        ord("g"),
    ]
    assert [tuple(ids.shape) for ids in seen] == [(2, 2), (1, 4)], (
        "no more than the context is read"
    )
    with pytest.raises(ValueError, match=r"texts .* without tokens"):
        judge(hidden).features(["a", ""])
    with pytest.raises(ValueError, match="hidden states: got stub"):
        judge(None).features(["a"])
