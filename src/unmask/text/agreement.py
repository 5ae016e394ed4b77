"""Whether token ids that somebody else made are those of the text beside them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from unmask.text.packing import Ids
from unmask.text.stored import COLUMN
from unmask.text.tokenizers import Tokenizer

COMPARED = 16  # rows
BEGINNING, AROUND = 256, 2**14  # ids of a row that are compared, and ids of its text that they are looked for in
RUN = 8  # equal ids in a row that are no accident
AGREEING = 0.8  # the share of ids in such runs where a tokenizer made them


def check_ids(name: str, pairs: Sequence[tuple[str, Ids]], tokenizer: Tokenizer) -> None:
    """ValueError where the tokenizer gives texts other ids than those that stand beside them.

    Special tokens apart, a row agrees where 4 of 5 of its ids are in runs of 8 or more that the ids of the text hold in
    the same order. So a row may be a part of its text, padded, or cleaned a little.
    """
    ends = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id}
    rows = [(text, [int(i) for i in ids if i not in ends]) for text, ids in pairs]
    rows = [(text, ids) for text, ids in rows if len(ids) >= RUN] or rows
    wrong = [(text, ids) for text, ids in rows if _shared(ids, tokenizer.encode(text)) < AGREEING]
    if wrong:
        text, ids = wrong[0]
        raise ValueError(
            f"{COLUMN} of {name!r} contradicts the column text in {len(wrong)} of {len(rows)} rows that were compared: "
            f"its ids spell {tokenizer.decode(ids[:16])!r}, the text begins {text[:48]!r}; give the tokenizer "
            "that made the ids, or drop the column that is wrong"
        )


def _shared(ids: list[int], expected: list[int]) -> float:
    """The share of the first ids that are in common runs."""
    one, two = ids[:BEGINNING], expected[:AROUND]
    most = min(len(one), len(two))
    runs = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    return sum(run.size for run in runs if run.size >= min(RUN, most)) / max(1, most) if ids else 1.0
