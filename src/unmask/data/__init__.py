"""Text as training data: tokenizers, corpora, rows of token ids, batches."""

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
