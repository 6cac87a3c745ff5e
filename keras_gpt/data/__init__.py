"""From documents to token files to training batches."""

from keras_gpt.data.batches import load_batches, load_texts
from keras_gpt.data.corpus import Corpus, read_documents
from keras_gpt.data.embedded import embedded_corpus, embedded_sample
from keras_gpt.data.examples import Example, count_rows, load_examples
from keras_gpt.data.preparation import prepare
from keras_gpt.data.records import read_records
from keras_gpt.data.shards import TokenDataset, read_metadata

__all__ = [
    "Corpus",
    "Example",
    "TokenDataset",
    "count_rows",
    "embedded_corpus",
    "embedded_sample",
    "load_batches",
    "load_examples",
    "load_texts",
    "prepare",
    "read_documents",
    "read_metadata",
    "read_records",
]
