"""A comparison of token ids in a data set with the ids of the text beside them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from unmask.data.packing import Ids
from unmask.data.rows_on_disk import IDS_COLUMN
from unmask.data.tokenizers import Tokenizer

COMPARED_ROWS = 16  # rows
BEGINNING, AROUND = (
    256,
    2**14,
)  # ids of a row that are compared, and ids of its text among which they are sought
RUN = 8  # equal ids one after the other that are no accident
ODD = 20  # one id, and one of so many, may be in no such run: the first word of a row, or cleaned text


def check_ids(name: str, pairs: Sequence[tuple[str, Ids]], tokenizer: Tokenizer) -> None:
    """ValueError where the tokenizer gives texts other ids than those that stand beside them.

    Special tokens are left out. The first 256 ids of a row agree where runs of 8 or more of them stand in the ids of
    the text in the same order. One id, and one in 20, may be in no run. A row may be padded, or a part of its text.
    """
    ends = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.mask_id}
    rows = [(text, [int(i) for i in ids if i not in ends]) for text, ids in pairs]
    rows = [(text, ids) for text, ids in rows if len(ids) >= RUN] or rows
    wrong = [(text, ids) for text, ids in rows if not _agree(ids, tokenizer.encode(text))]
    if wrong:
        text, ids = wrong[0]
        raise ValueError(
            f"{IDS_COLUMN} of {name!r} contradicts the column text in {len(wrong)} of {len(rows)} rows that were compared: "
            f"its ids spell {tokenizer.decode(ids[:16])!r}, the text begins {text[:48]!r}; give the tokenizer "
            "that made the ids, or drop the column that is wrong"
        )


def _agree(ids: list[int], expected: list[int]) -> bool:
    """Whether nearly all of the first ids are in common runs."""
    one, two = ids[:BEGINNING], expected[:AROUND]
    most = min(len(one), len(two))
    runs = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
    odd = max(most, 1) - sum(run.size for run in runs if run.size >= min(RUN, most))
    return not ids or odd <= 1 + most / ODD
