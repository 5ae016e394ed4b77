"""Text for evaluation: measured whole, and known again under its other names."""

from pathlib import Path

import pytest

from unmask.data import Corpus
from unmask.data.evaluation_text import corpus_exists, evaluation_part, same_corpus


def test_a_text_for_evaluation_is_measured_whole() -> None:
    one = Corpus("one", ["text"])
    assert evaluation_part(one) is one, "nothing has to be divided"
    apart = evaluation_part(Corpus("split", ["a", "b"], held_out=["c"]))
    assert apart.documents == ["c"] and apart.name == "split/held_out", (
        "what is published to be measured on"
    )


def test_one_text_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set.txt", "other/set.txt", "sotu/1.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    assert (
        corpus_exists("set.txt")
        and corpus_exists("sotu")
        and corpus_exists("hub:some/where")
        and not corpus_exists("gone.txt")
    )
    assert same_corpus("set.txt", "other/../set.txt") and same_corpus(
        str(tmp_path / "set.txt"), "set.txt"
    )
    assert not same_corpus("other/set.txt", "set.txt"), "both are there, and they are two"
    assert same_corpus("set.txt", "/moved/away/set.txt") and not same_corpus(
        "set.txt", "/moved/away/text.txt"
    )
    assert not same_corpus("./sotu", "sotu") and same_corpus("sotu", "sotu"), (
        "a name wins over a folder of that name"
    )
    assert not same_corpus("hub:a/b", "hub:c/b")
