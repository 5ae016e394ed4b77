"""A long text in pieces whose encodings, one after the other, are the encoding of the whole text.

An encoding takes about 100 bytes a character while it is made, so that a text of 50 MB in one piece takes 6 GB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import TypeVar

PIECE = 2**18  # characters of a piece, and of the longest text that is encoded as it is
CONTEXT = 2**10  # characters on both sides of a cut that are encoded to see that it changes nothing
MOST = 2**24  # characters without a place to cut
TRIES = 4  # places of each sort that are tried in a piece
_PLACES = (
    r"(?<=\S)(?=\s\S)",
    r"(?<=\w)(?=\W)|(?<=\W)(?=\w)",
)  # before a lone blank; at the border of a word

Codes = TypeVar("Codes", list[int], list[str])


def encode_in_pieces(
    text: str,
    encode: Callable[[str], Codes],
    size: int = PIECE,
    context: int = CONTEXT,
    most: int = MOST,
) -> Iterator[tuple[str, Codes]]:
    """Pieces of a text and their codes; all codes together are those of the whole text.

    A text a b is cut between a and b where encode(a c) = encode(a) encode(c) for the first `context` characters c of b.
    A piece grows from `size` characters until there is such a place. ValueError where `most` characters have none.
    """
    start = 0
    while start < len(text) or not start:
        piece, codes = _first_piece(text, start, encode, size, context, most)
        yield piece, codes
        start += max(1, len(piece))


def _first_piece(
    text: str, start: int, encode: Callable[[str], Codes], size: int, context: int, most: int
) -> tuple[str, Codes]:
    while len(text) - start > size + context:
        for cut in _places(text, start + size, min(size, 4 * context)):
            after = encode(text[cut : cut + context])
            for before in (
                max(start, cut - context),
                start,
            ):  # the whole piece only where its end agrees
                codes = encode(text[before : cut + context])
                if not after or codes[-len(after) :] != after:
                    break
            else:
                return text[start:cut], codes[: -len(after)]
        if size > most:
            raise ValueError(
                f"a document has {size} characters from character {start} on and no place where the tokenizer lets it "
                f"be cut: want at most {most}; divide the document, or give a tokenizer that cuts text into words"
            )
        size *= 2
    return text[start:], encode(text[start:])


def _places(text: str, end: int, width: int) -> Iterator[int]:
    """Where a text may be cut before its character `end` and not more than `width` before that: the last ones first."""
    first = end - width + 1
    return chain.from_iterable(
        islice(
            (
                first + match.start()
                for match in reversed([*re.finditer(place, text[first : end + 1])])
            ),
            TRIES,
        )
        for place in _PLACES
    )
