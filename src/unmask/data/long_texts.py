"""Long texts encoded in pieces; all codes together are the encoding of the whole text.

An encoding takes about 100 bytes a character while it is made: 6 GB for 50 MB in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

PIECE = 2**18  # characters of a piece, and of the longest text that is encoded whole
CONTEXT = 2**10  # characters on both sides of a cut that are encoded to check it
LONGEST = 2**24  # characters of the longest piece without a valid cut
TRIES = 4  # cuts of each sort that are tried
_CUTS = (
    r"(?<=\S)(?=\s\S)",  # before a single space
    r"(?<=\w)(?=\W)|(?<=\W)(?=\w)",  # at the border of a word
)

Codes = TypeVar("Codes", list[int], list[str])


def encode_in_pieces(
    text: str,
    encode: Callable[[str], Codes],
    size: int = PIECE,
    context: int = CONTEXT,
    longest: int = LONGEST,
) -> Iterator[tuple[str, Codes]]:
    """Pieces of a text and their codes, which together are the codes of the whole text.

    A text a b is cut between a and b if encode(a c) = encode(a) encode(c) for the first `context`
    characters c of b. A piece grows from `size` characters until there is such a cut.

    Args:
        text: the text.
        encode: gives the codes of a text.
        size: characters of a piece.
        context: characters on both sides of a cut that are encoded.
        longest: characters after which a missing cut is an error.

    Raises:
        ValueError: `longest` characters have no valid cut.
    """
    start = 0
    while start < len(text) or not start:
        piece, codes = _first_piece(text, start, encode, size, context, longest)
        yield piece, codes
        start += max(1, len(piece))


def _first_piece(
    text: str, start: int, encode: Callable[[str], Codes], size: int, context: int, longest: int
) -> tuple[str, Codes]:
    while len(text) - start > size + context:
        for cut in _cuts(text, start + size, min(size, 4 * context)):
            after = encode(text[cut : cut + context])
            # Encode the whole piece only if its end gives the expected codes.
            for before in (max(start, cut - context), start):
                codes = encode(text[before : cut + context])
                if not after or codes[-len(after) :] != after:
                    break
            else:
                return text[start:cut], codes[: -len(after)]
        if size > longest:
            raise ValueError(
                f"a document has no place where this tokenizer can cut it in the {size} "
                f"characters from character {start} on: want at most {longest}; divide the "
                "document, or give a tokenizer that splits text into words"
            )
        size *= 2
    return text[start:], encode(text[start:])


def _cuts(text: str, end: int, width: int) -> Iterator[int]:
    """Places to cut a text in the `width` characters up to `end`, the last of each sort first."""
    first = end - width + 1
    for sort in _CUTS:
        places = [first + match.start() for match in re.finditer(sort, text[first : end + 1])]
        yield from reversed(places[-TRIES:])
