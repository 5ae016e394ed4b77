"""Text as training data: documents -> token ids -> rows of L tokens -> batches.

documents  `corpora` reads a named corpus, files (`corpus_files`) or a data set (`hf_datasets`,
           `hub`). `streaming` reads a data set only as far as needed.
token ids  `tokenizers`, with the files in `tokenizer_files`; `long_texts` encodes long documents.
rows       `packing` makes rows in memory, `rows_on_disk` in files, `prefetch` from a stream.
batches    `packing.batch_at`: the rows of a step, a pure function of its number.
"""

from unmask.data.corpora import Corpus, Split, halves, load_corpus, split
from unmask.data.packing import batch_at, pack
from unmask.data.tokenizers import Tokenizer, check_vocabulary, find_tokenizer, train_bpe

__all__ = [
    "Corpus",
    "Split",
    "Tokenizer",
    "batch_at",
    "check_vocabulary",
    "find_tokenizer",
    "halves",
    "load_corpus",
    "pack",
    "split",
    "train_bpe",
]
