"""Text that is named for evaluation: the part that is measured, and a comparison of its name with another one."""

from __future__ import annotations

from pathlib import Path

from unmask.data.corpora import Corpus, is_corpus_name


def evaluation_part(corpus: Corpus) -> Corpus:
    """The part of a text for evaluation that is measured: its published held-out split, else all of it."""
    return corpus if corpus.held_out is None else corpus.part("held_out", corpus.held_out)


def corpus_exists(name: str) -> bool:
    """Whether `load_corpus` finds something of this name here, or looks for it on the hub."""
    return is_corpus_name(name) or Path(name).exists()


def same_corpus(name: str, known: str) -> bool:
    """Whether a name of a corpus is another name of the text `known`: equal, or paths of one file or folder.

    Where the path `known` is not there (it was moved, or was relative to another folder), equal file names decide.
    """
    if name == known or is_corpus_name(name) or is_corpus_name(known):
        return name == known
    path, other = Path(name), Path(known)
    return path.samefile(other) if path.exists() and other.exists() else path.name == other.name
