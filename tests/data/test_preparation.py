import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from keras_gpt.data import TokenDataset, prepare, read_metadata
from keras_gpt.data.corpus import PIECE_CHARACTERS
from keras_gpt.tokenizers import BytePairTokenizer, CharacterTokenizer

END = "<|endoftext|>"


def make_documents(num_documents, seed=0):
    chooser = random.Random(seed)
    words = ["the", "cat", "sat", "on", "a", "mat", "é", "and", "dreamt\nof", "mice\n"]
    return [
        " ".join(chooser.choices(words, k=chooser.randint(1, 200)))
        for _ in range(num_documents)
    ]


@pytest.fixture(scope="module")
def documents():
    return make_documents(300)


@pytest.fixture(scope="module")
def tokenizer(documents):
    return CharacterTokenizer.train(documents, special_tokens=[END], progress=False)


def quietly(*arguments, **options):
    return prepare(*arguments, progress=False, **options)


def contents(directory):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.iterdir())
    }


def read_back(directory, split, tokenizer):
    tokens = TokenDataset(directory, split, verify=True)
    starts = [0, *tokens.document_ends[:-1].tolist()]
    return [
        tokenizer.decode(tokens[start:end].tolist())
        for start, end in zip(starts, tokens.document_ends.tolist(), strict=True)
    ]


def test_single_text_keeps_its_last_tenth_of_characters_for_validation(tmp_path):
    text = make_documents(1, seed=1)[0] * 50
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokenizer = CharacterTokenizer.train([text], progress=False)
    metadata = quietly(tmp_path / "a.txt", tmp_path / "out", tokenizer)
    cut = int(0.9 * len(text))
    ids = tokenizer.encode(text)
    train, val = (TokenDataset(tmp_path / "out", name) for name in ("train", "val"))
    assert train[:].tolist() == ids[:cut]
    assert val[:].tolist() == ids[cut:]
    assert train.dtype == np.uint16
    counts = metadata["splits"]["val"]
    assert counts["num_characters"] == len(text) - cut
    assert counts["num_bytes"] == len(text[cut:].encode())


def test_splits_are_whole_documents_each_with_its_end(tmp_path, documents, tokenizer):
    metadata = quietly(documents, tmp_path, tokenizer, shard_size=1000)
    assert metadata == read_metadata(tmp_path)
    train = read_back(tmp_path, "train", tokenizer)
    val = read_back(tmp_path, "val", tokenizer)
    expected = [document + END for document in documents]
    assert sorted(train + val) == sorted(expected)
    assert train == [document for document in expected if document in set(train)]
    assert 10 <= len(val) <= 60
    assert not set(train) & set(val)
    assert len(metadata["splits"]["train"]["shards"]) > 5


def test_more_documents_leave_earlier_ones_in_their_split(
    tmp_path, documents, tokenizer
):
    quietly(documents[:150], tmp_path / "few", tokenizer)
    quietly(documents[::-1], tmp_path / "all", tokenizer)
    few = set(read_back(tmp_path / "few", "val", tokenizer))
    assert few < set(read_back(tmp_path / "all", "val", tokenizer))


def test_shard_size_changes_files_but_not_tokens(tmp_path, documents, tokenizer):
    documents = [document[:100] for document in documents[:4]]
    sizes = [1, 7, 100, 2**26]
    for size in sizes:
        quietly(documents, tmp_path / str(size), tokenizer, shard_size=size)
    streams = [TokenDataset(tmp_path / str(size), "train")[:] for size in sizes]
    for stream in streams[1:]:
        np.testing.assert_array_equal(stream, streams[0])
    total = len(streams[0])
    quietly(documents, tmp_path / "whole", tokenizer, shard_size=total)
    shards = read_metadata(tmp_path / "whole")["splits"]["train"]["shards"]
    assert [shard["num_tokens"] for shard in shards] == [total]


def test_large_vocabulary_is_stored_in_32_bits(tmp_path):
    tokenizer = CharacterTokenizer([chr(code) for code in range(0x10000, 0x21000)])
    quietly([chr(0x20FFF) * 20], tmp_path, tokenizer)
    tokens = TokenDataset(tmp_path, "train")
    assert tokens.dtype == np.uint32
    assert set(tokens[:].tolist()) == {0x10FFF}


def test_workers_write_the_same_bytes_as_one(tmp_path):
    documents = make_documents(3600)
    assert sum(map(len, documents)) > 3 * 400_000  # more than three tasks
    tokenizer = BytePairTokenizer.train(documents[:500], 300, progress=False)
    for workers in (1, 2):
        out = tmp_path / str(workers)
        quietly(documents, out, tokenizer, num_workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("line_end", ["\n", "\n\n", "\r\n", " "])
def test_long_document_gets_the_same_tokens_in_pieces_as_in_one(tmp_path, line_end):
    text = line_end.join(make_documents(600))
    assert len(text) > 2 * PIECE_CHARACTERS
    tokenizer = BytePairTokenizer.train([text], 300, progress=False)
    quietly([text], tmp_path, tokenizer, validation_fraction=0)
    tokens = TokenDataset(tmp_path, "train")[:].tolist()
    assert tokens == [*tokenizer.encode(text), tokenizer.end_of_text_id]


KILLED = """
import os, pathlib, signal, sys
from keras_gpt.data import prepare
from keras_gpt.tokenizers import CharacterTokenizer

class Dying(CharacterTokenizer):
    calls = 0
    def encode_batch(self, texts):
        Dying.calls += 1
        if Dying.calls > int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)
    @property
    def fingerprint(self):
        return CharacterTokenizer._from_content(self._content).fingerprint

tokenizer = CharacterTokenizer.load(sys.argv[4])
prepare(sys.argv[1], sys.argv[2], Dying._from_content(tokenizer._content),
        shard_size=100_000, num_workers=1, progress=False)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tokenizer):
    """A source and the directory of a `prepare` killed after three shards or so."""
    directory = tmp_path_factory.mktemp("killed")
    source, out = directory / "source.jsonl", directory / "out"
    with source.open("w", encoding="utf-8") as file:
        for document in make_documents(5000):
            file.write(json.dumps({"text": document}) + "\n")
    tokenizer.save(directory / "tokenizer")
    arguments = [source, out, "4", directory / "tokenizer"]
    result = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], check=False
    )
    assert result.returncode == -signal.SIGKILL
    return source, out


def test_killed_and_started_again_writes_the_same_bytes(tmp_path, killed, tokenizer):
    source, out = killed
    with pytest.raises(FileNotFoundError, match=r"only in part.*it continues"):
        TokenDataset(out, "train")
    shutil.copytree(out, tmp_path / "continued")
    first = tmp_path / "continued" / "train-00000.bin"
    written = first.stat().st_mtime_ns
    quietly(source, tmp_path / "continued", tokenizer, shard_size=100_000)
    assert first.stat().st_mtime_ns == written
    quietly(source, tmp_path / "whole", tokenizer, shard_size=100_000)
    assert contents(tmp_path / "continued") == contents(tmp_path / "whole")


def test_killed_with_other_arguments_is_refused_or_started_afresh(
    tmp_path, killed, tokenizer
):
    source, out = killed
    shutil.copytree(out, tmp_path / "out")
    with pytest.raises(ValueError, match=r"another shard_size.*overwrite=True"):
        quietly(source, tmp_path / "out", tokenizer)
    quietly(source, tmp_path / "out", tokenizer, overwrite=True)
    quietly(source, tmp_path / "fresh", tokenizer)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


class Stopped(CharacterTokenizer):
    """As the tokenizer that is given, but it stops after a number of batches."""

    def __init__(self, tokenizer, num_batches):
        super().__init__(json.loads(tokenizer._content)["characters"], [END])
        self.left = num_batches

    def encode_batch(self, texts):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().encode_batch(texts)

    @property
    def fingerprint(self):
        return CharacterTokenizer._from_content(self._content).fingerprint


@pytest.fixture
def small_parts(monkeypatch):
    """Let parts of a corpus be of 10 kB."""
    monkeypatch.setattr("keras_gpt.data.corpus.PART_BYTES", 10_000)


def write_json_lines(folder, names, num_documents):
    folder.mkdir()
    for name in names:
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for document in make_documents(num_documents, seed=name):
                file.write(json.dumps({"text": document}) + "\n")
    return folder


@pytest.mark.parametrize(("split", "num_batches"), [("documents", 25), ("tail", 14)])
def test_what_goes_on_reads_no_file_again_that_is_done(
    tmp_path, tokenizer, small_parts, split, num_batches
):
    options = {"split": split, "shard_size": 5000, "num_workers": 1}
    source = write_json_lines(tmp_path / "source", "abc", 100)
    quietly(source, tmp_path / "whole", tokenizer, **options)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        quietly(source, out, Stopped(tokenizer, num_batches), **options)
    first = source / "a.jsonl"
    status = first.stat()
    first.write_bytes(b"x" * status.st_size)
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    quietly(source, out, tokenizer, **options)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_at_once_are_one_too_many(tmp_path, documents, tokenizer):
    out = tmp_path / "out"

    def source():
        yield documents[0]
        with pytest.raises(BlockingIOError, match=r"out is being written by another"):
            quietly(documents, out, tokenizer)
        yield from documents

    options = {"validation_fraction": 0, "shard_size": 1000}
    quietly(source(), out, tokenizer, **options)
    [(_, split)] = read_metadata(out)["splits"].items()
    assert split["num_documents"] == len(documents) + 1


def test_what_a_killed_process_left_is_cleared(tmp_path, documents, tokenizer):
    (tmp_path / f".{os.getpid()}.partial.metadata.json").write_text("half")
    (tmp_path / f".{os.getpid()}.partial.progress.json").mkdir()
    quietly(documents, tmp_path, tokenizer)
    assert not list(tmp_path.glob(".*.partial*"))


@pytest.mark.parametrize("name", ["metadata.json", "progress.json"])
@pytest.mark.parametrize("content", ["null", "[]", '{"states": {"train": 1}}', "{"])
def test_damaged_notes_are_named(tmp_path, tokenizer, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is (damaged|not valid JSON)"):
        quietly(["the cat"], tmp_path, tokenizer)


def test_complete_directory_is_left_as_it_is(tmp_path, documents, tokenizer):
    first = quietly(documents, tmp_path, tokenizer)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert quietly(documents, tmp_path, tokenizer) == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_complete_directory_of_other_data_is_refused_unless_overwritten(
    tmp_path, documents, tokenizer
):
    quietly(documents, tmp_path, tokenizer, shard_size=10_000)
    other = CharacterTokenizer.train(documents, progress=False)
    with pytest.raises(ValueError, match="another tokenizer, vocab_size, end_of_text"):
        quietly(documents, tmp_path, other, shard_size=10_000)
    with pytest.raises(ValueError, match="another source"):
        quietly(documents[1:], tmp_path, tokenizer, shard_size=10_000)
    with pytest.raises(ValueError, match="cannot be compared"):
        quietly(iter(documents), tmp_path, tokenizer, shard_size=10_000)
    (tmp_path / "notes.txt").write_text("mine")
    quietly(iter(documents), tmp_path, tokenizer, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "train-00001.bin").exists()
    assert len(read_back(tmp_path, "train", tokenizer)) > 100


def test_empty_corpus_and_empty_split_leave_no_files(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="The corpus is empty"):
        quietly([""], tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"'val' got no text.*`split='tail'`"):
        quietly(["the cat"], tmp_path, tokenizer, split="documents")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    metadata = quietly(["the cat"], tmp_path, tokenizer, validation_fraction=0)
    assert list(metadata["splits"]) == ["train"]
    with pytest.raises(ValueError, match=r"one of those in .*: train"):
        TokenDataset(tmp_path, "val")


def test_tail_of_an_iterator_is_refused(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="reads the source twice"):
        quietly(iter(["the cat"]), tmp_path, tokenizer, split="tail")


@pytest.mark.skipif(os.name == "nt", reason="needs a limit on the size of files")
def test_failed_write_leaves_nothing_that_looks_finished(
    tmp_path, documents, tokenizer
):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match="Make room and run the same again"):
            quietly(documents, tmp_path, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "metadata.json").exists()
    quietly(documents, tmp_path, tokenizer)
    assert read_back(tmp_path, "val", tokenizer)[-1].endswith(END)


class TooManyIds(CharacterTokenizer):
    vocab_size = 3


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ids from 0 to vocab_size - 1 = 2"):
        quietly(["abcdef"], tmp_path, TooManyIds("abcdef"))


@pytest.mark.parametrize(
    "options",
    [
        {"validation_fraction": 1},
        {"validation_fraction": -0.1},
        {"split": "half"},
        {"engine": "spark"},
        {"shard_size": 0},
        {"num_workers": 0},
    ],
)
def test_bad_argument_is_named(tmp_path, tokenizer, options):
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}={value!r}"):
        quietly(["the cat"], tmp_path, tokenizer, **options)


def test_damaged_files_are_named(tmp_path, documents, tokenizer):
    quietly(documents, tmp_path, tokenizer)
    shard = tmp_path / "train-00000.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[::-1])
    with pytest.raises(ValueError, match=r"train-00000\.bin has another checksum"):
        TokenDataset(tmp_path, "train", verify=True)
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"train-00000\.bin must have .* is damaged"):
        TokenDataset(tmp_path, "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00000\.bin is missing"):
        TokenDataset(tmp_path, "train")


@pytest.mark.parametrize("kind", ["texts", "lines"])
def test_the_bar_knows_the_size_of_the_corpus(tmp_path, capfd, kind):
    documents = ["to be, or not to be"] * 100
    tokenizer = CharacterTokenizer.train(documents, progress=False)
    source, size = documents, 1900
    if kind == "lines":
        source = tmp_path / "corpus.jsonl"
        lines = [json.dumps({"text": text}) for text in documents]
        source.write_text("\n\n".join(lines) + "\n\n\n")
        size = source.stat().st_size
    prepare(source, tmp_path / "data", tokenizer, split="tail")
    bar = capfd.readouterr().err
    assert f"100% {size / 1000:.1f}/{size / 1000:.1f} kB" in bar
