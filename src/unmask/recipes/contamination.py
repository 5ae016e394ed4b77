"""The share of a held-out text that a model was trained on, according to the model's card."""

from __future__ import annotations

from pathlib import Path

from unmask.data.corpora import Corpus, halves, load_corpus, same_corpus, split
from unmask.data.hub import PACKAGE_PREFIX
from unmask.data.rows_on_disk import TokenLists
from unmask.data.streaming import Stream
from unmask.recipes.data import PARTS
from unmask.recipes.schema import DataSettings, trained_on


def share_read(model: str, measured: DataSettings, whole: bool = False) -> float | None:
    """The share of the held-out documents of `measured` that a model was trained on.

    Args:
        model: a directory, or unmask:NAME. Its card names its training text.
        measured: the text of a measurement.
        whole: True: all documents of `measured` count; False: only the held-out ones.

    Returns:
        The share, in [0, 1]. None: it is unknown, because there is no card, the card names another
        corpus, or only one of the two texts is streamed.
    """
    trained = (
        trained_on(model) if model.startswith(PACKAGE_PREFIX) or Path(model).is_dir() else None
    )
    if trained is None or not same_corpus(measured.corpus, trained.corpus):
        return None
    if trained.streaming != measured.streaming:
        return None
    if measured.streaming or (trained.part == measured.part and not whole):
        return 0.0  # training and measurement hold out the same documents
    corpus = load_corpus(measured.corpus)
    if corpus.held_out is not None:
        return 0.0  # the corpus is published with a held-out split
    if not isinstance(corpus.documents, TokenLists):  # numbers replace the texts: no text is read
        corpus = Corpus("numbers", list(map(str, range(len(corpus.documents)))))
    seen, (rest, held_out) = set(_part(corpus, trained)[0]), _part(corpus, measured)
    read = [*rest, *held_out] if whole else held_out
    return sum(number in seen for number in read) / len(read)


def _part(corpus: Corpus, data: DataSettings) -> tuple[list[object], list[object]]:
    """The numbers of the training documents and of the held-out documents of a recipe."""
    parts = split(corpus if data.part == "all" else halves(corpus)[PARTS[data.part].start])
    return _numbers(parts.train), _numbers(parts.held_out)


def _numbers(side: Corpus | Stream) -> list[object]:
    if isinstance(side, Corpus) and isinstance(side.documents, TokenLists):
        return list(side.documents.chosen)
    return list(side.texts)
