"""Text for evaluation: measured whole, and known again under its other names."""

from pathlib import Path

import pytest

from unmask.data import Corpus
from unmask.data.evaluation_text import is_there, measured, same_text


def test_a_text_for_evaluation_is_measured_whole() -> None:
    one = Corpus("one", ["text"])
    assert measured(one) is one, "nothing has to be divided"
    apart = measured(Corpus("split", ["a", "b"], held_out=["c"]))
    assert apart.documents == ["c"] and apart.name == "split/held_out", (
        "what is published to be measured on"
    )


def test_one_text_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set.txt", "other/set.txt", "sotu/1.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert (
        is_there("set.txt")
        and is_there("sotu")
        and is_there("hub:some/where")
        and not is_there("gone.txt")
    )
    assert same_text("set.txt", "other/../set.txt") and same_text(
        str(tmp_path / "set.txt"), "set.txt"
    )
    assert not same_text("other/set.txt", "set.txt"), "both are there, and they are two"
    assert same_text("set.txt", "/moved/away/set.txt") and not same_text(
        "set.txt", "/moved/away/text.txt"
    )
    assert not same_text("./sotu", "sotu") and same_text("sotu", "sotu"), (
        "a name wins over a folder of that name"
    )
    assert not same_text("hub:a/b", "hub:c/b")
