"""Zero-shot sets: published detokenisers, rows as in the published tables, plain errors."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from unmask.data.corpora import Corpus
from unmask.data.tokenizers import END, Tokenizer, train_bpe
from unmask.data.zero_shot_sets import (
    LM1B,
    PTB,
    WIKITEXT,
    ZERO_SHOT,
    detokenised,
    load_zero_shot,
    zero_shot_rows,
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(["the rain in Spain stays mainly in the plain\n"] * 3, 270)


@pytest.mark.parametrize(
    "rules, text, want",
    [
        (WIKITEXT, " = Robert Boulter = \n", " = Robert Boulter =\n"),
        (WIKITEXT, "a 20 @,@ 000 @-@ word , two @.@ five ; text : yes .\n",
         "a 20,000-word, two.five; text: yes .\n"),
        (WIKITEXT, 'He said " no " ( twice ) , the dogs \' tail . ',
         'He said "no" (twice), the dogs\' tail. '),
        (WIKITEXT, " = = Early = = \n it 's 5 ° C { x } [ y ]", " == Early ==\nit's 5°C {x} [y]"),
        (WIKITEXT, "lasted N years ' 94 /' 3/ ", "lasted 1 years'94 /'[0-9]/ "),
        (PTB, "mr. <unk> 's N N N dogs ' tails do n't cost $ N or # N \\/ day",
         "mr. ?'s 1 1 1 dogs' tails don't cost $1 or #1 / day"),
        (LM1B, "it 's red , green ; blue : yes / no ?", "it's red, green; blue: yes/no?"),
        (LM1B, "see http : / / x , the word . And so it ends .",
         "see http://x, the word. And so it ends."),
        (LM1B, 'a " quoted " and \' single \' ( round ) [ square ] costs $ 5 or £ 6 !',
         'a "quoted" and \'single\' (round) [square] costs $5 or £6!'),
    ],
)  # fmt: skip
def test_detokenisers(rules: Any, text: str, want: str) -> None:
    assert detokenised(text, rules) == want


FIXTURES: dict[str, dict[str, list[str]]] = {
    "ptb": {"sentence": ["the <unk> cost $ N a share", "no it was n't"]},
    "wikitext": {"text": ["", " = Head = \n", " Some text , here . \n"]},
    "lm1b": {"text": ["It 's here .", "Where ?"]},
    "ag_news": {"text": ["Oil #39;s up", "Two"], "label": ["1", "2"]},
    "pubmed": {
        "article": ["the @,@ end .\n next", "two"],
        "abstract": ["a", "b"],
        "section_names": ["x", "y"],
    },
    "arxiv": {"article": ["one ?", "two"], "abstract": ["a", "b"], "section_names": ["x", "y"]},
}
TEXTS = {
    "ptb": ["the ? cost $1 a share", "no it wasn't"],
    "wikitext": ["", " = Head =\n", " Some text, here.\n"],
    "lm1b": ["It's here.", "Where?"],
    "ag_news": ["Oil #39;s up", "Two"],
    "pubmed": ["the,end .\nnext", "two"],
    "arxiv": ["one?", "two"],
}


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_sets_in_the_form_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parquet files with the columns of the published sets, through `datasets` itself."""
    real, source = datasets.load_dataset, ZERO_SHOT[name]
    kind = {"ptb": "penn_treebank", "pubmed": "pubmed", "arxiv": "arxiv"}.get(name, "default")
    file = tmp_path / kind / f"partial-{source.split}" / "0000.parquet"
    (tmp_path / kind / "train").mkdir(parents=True)
    (tmp_path / kind / "train" / "0000.parquet").write_bytes(b"not to be read")
    file.parent.mkdir()
    datasets.Dataset.from_dict(FIXTURES[name]).to_parquet(file)

    def load(
        path: str, config: str | None, *, split: str, revision: str | None, data_files: Any
    ) -> Any:
        assert (path, config, split, revision) == (
            source.path,
            source.name,
            source.split,
            source.revision,
        )
        if (
            kind != "default"
        ):  # as on the hub's branch of parquet files, which has no named configurations
            return real(
                str(tmp_path),
                config,
                data_files=data_files,
                split=split,
                cache_dir=str(tmp_path / "cache"),
            )
        return real(
            "parquet", data_files={split: str(file)}, split=split, cache_dir=str(tmp_path / "cache")
        )

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(load_zero_shot(name).documents) == TEXTS[name]


def test_lambada_is_a_file_of_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "lambada_test.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": text}) for text in (" “in” the end ", "two")), "utf-8"
    )
    real = datasets.load_dataset
    local = {"data_files": str(file), "cache_dir": str(tmp_path / "cache")}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: real(*names, **options | local)
    )
    assert list(load_zero_shot("lambada").documents) == ['\n"in" the end', "\ntwo"]


def test_the_seven_of_the_papers_are_there() -> None:
    assert list(ZERO_SHOT) == ["ptb", "wikitext", "lm1b", "lambada", "ag_news", "pubmed", "arxiv"]
    assert {name for name, each in ZERO_SHOT.items() if each.split == "test"} == {"lm1b", "ag_news"}


def test_the_error_names_columns_that_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"body": ["a"]})
    )
    with pytest.raises(ValueError, match=r"no column 'sentence': got body"):
        load_zero_shot("ptb")


def test_a_set_whose_column_holds_no_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"text": [3]})
    )
    with pytest.raises(
        ValueError, match=r"column 'text' of the zero-shot set 'ag_news' .*got int64"
    ):
        load_zero_shot("ag_news")


def test_the_error_without_network_names_the_remedy() -> None:
    """HF_HUB_OFFLINE is set for all tests, so `datasets` itself raises."""
    with pytest.raises(
        ValueError,
        match=r"'ag_news' \(fancyzhx/ag_news, split test\) could not be loaded.*offline`",
    ):
        load_zero_shot("ag_news")
    with pytest.raises(ValueError, match=r"zero-shot set 'pdb' .*want one of ptb"):
        load_zero_shot("pdb")


def test_rows_are_those_of_the_published_tables(bpe: Tokenizer) -> None:
    """Batches of documents joined without EOS, cut into L - 2 tokens, both ends added."""
    documents = [f"rain {i} in the plain" for i in range(7)]
    rows = zero_shot_rows(Corpus("toy", documents), bpe, length=10, batch=3)
    eos, want = bpe.eos_id, []
    for batch in (documents[:3], documents[3:6], documents[6:]):
        stream = bpe.encode("".join(batch[:1])) + [
            t for text in batch[1:] for t in bpe.encode(text)
        ]
        want += [[eos, *stream[i : i + 8], eos] for i in range(0, len(stream) - 7, 8)]
    assert rows.dtype == torch.int64 and rows.tolist() == want
    assert eos not in rows[:, 1:-1]


def test_plain_crops_are_the_same_stream_without_ends(bpe: Tokenizer) -> None:
    """For models trained without BOS and EOS at the ends of rows."""
    documents = [f"rain {i} in the plain" for i in range(7)]
    rows = zero_shot_rows(Corpus("toy", documents), bpe, length=10, wrap=False)
    stream = [token for text in documents for token in bpe.encode(text)]
    assert rows.flatten().tolist() == stream[: len(stream) // 10 * 10] and bpe.eos_id not in rows


def test_a_batch_too_short_for_a_row_is_left_out_and_a_set_too_short_is_refused(
    bpe: Tokenizer,
) -> None:
    short = Corpus("toy", ["the plain", "rain", "in Spain stays mainly in the plain"])
    assert zero_shot_rows(short, bpe, length=8, batch=2).shape[1] == 8
    with pytest.raises(ValueError, match=r"length .*got 1000, but no 2 .*toy have 998 tokens"):
        zero_shot_rows(short, bpe, length=1000, batch=2)


def test_text_that_spells_a_special_token_stays_text(bpe: Tokenizer) -> None:
    rows = zero_shot_rows(Corpus("toy", [f"a {END} b" * 5]), bpe, length=12)
    assert bpe.eos_id not in rows[:, 1:-1]
