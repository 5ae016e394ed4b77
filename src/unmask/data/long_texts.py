"""Encoding of long texts in pieces, with the same result as encoding the whole text.

A tokenizer uses about 100 bytes of memory for each character: 6 GB for 50 MB in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeVar

PIECE = 2**18  # characters of a piece, and of the longest text that is encoded whole
CONTEXT = 2**10  # characters on each side of a cut that are encoded to check it
LONGEST = 2**24  # characters of the longest piece without a valid cut
TRIES = 4  # possible cuts of each kind that are checked
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
    """Yield the pieces of a text with their codes; joined, these are the codes of the whole text.

    A text a b may be cut between a and b if encode(a c) = encode(a) encode(c). Here c is the first
    `context` characters of b. A piece has `size` characters; without a cut its size doubles.

    Args:
        text: the text.
        encode: returns the codes of a text.
        size: characters of a piece.
        context: characters on each side of a cut that are encoded to check it.
        longest: characters of the longest piece.

    Raises:
        ValueError: a longer piece than `longest` has no valid cut.
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
                f"a document cannot be encoded in pieces: got {size} characters without a valid "
                f"cut, from character {start} on, want at most {longest}. Divide the document, or "
                "use a tokenizer that splits text into words"
            )
        size *= 2
    return text[start:], encode(text[start:])


def _cuts(text: str, end: int, width: int) -> Iterator[int]:
    """Possible cuts in the `width` characters before `end`, the last cut of each kind first."""
    first = end - width + 1
    for pattern in _CUTS:
        places = [first + match.start() for match in re.finditer(pattern, text[first : end + 1])]
        yield from reversed(places[-TRIES:])
