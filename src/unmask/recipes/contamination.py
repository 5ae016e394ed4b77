"""The share of a held-out text that a model was trained on, from the cards of models."""

from __future__ import annotations

from pathlib import Path

from unmask.data.corpora import Corpus, halves, load_corpus, same_corpus, split
from unmask.data.hub import PACKAGE_PREFIX
from unmask.data.rows_on_disk import TokenLists
from unmask.data.streaming import Stream
from unmask.recipes.build import trained_on
from unmask.recipes.data import PARTS
from unmask.recipes.schema import DataSettings


def share_read(model: str, measured: DataSettings, whole: bool = False) -> float | None:
    """The share of the held-out documents of `measured` that a model was trained on, by the text that its card names.

    model  a directory, or unmask:NAME
    whole  all documents of `measured` count, not only the held-out ones

    None where it is not known: no card, another corpus, or one corpus that only one side streams.
    """
    told = trained_on(model) if model.startswith(PACKAGE_PREFIX) or Path(model).is_dir() else None
    if told is None or not same_corpus(measured.corpus, told.corpus):
        return None
    if told.streaming != measured.streaming:
        return None
    if measured.streaming or (told.part == measured.part and not whole):
        return 0.0  # one rule holds documents out for both
    corpus = load_corpus(measured.corpus)
    if corpus.held_out is not None:
        return 0.0  # published apart
    if not isinstance(corpus.documents, TokenLists):  # whose numbers are known without their text
        corpus = Corpus("numbers", list(map(str, range(len(corpus.documents)))))
    learnt, (rest, held_out) = set(_part(corpus, told)[0]), _part(corpus, measured)
    read = [*rest, *held_out] if whole else held_out
    return sum(number in learnt for number in read) / len(read)


def _part(corpus: Corpus, data: DataSettings) -> tuple[list[object], list[object]]:
    """The numbers of the documents that a recipe trains on, and of those that it holds out."""
    parts = split(corpus if data.part == "all" else halves(corpus)[PARTS[data.part].start])
    return _numbers(parts.train), _numbers(parts.held_out)


def _numbers(side: Corpus | Stream) -> list[object]:
    if isinstance(side, Corpus) and isinstance(side.documents, TokenLists):
        return list(side.documents.chosen)
    return list(side.texts)
