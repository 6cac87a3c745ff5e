import functools
import gzip
import itertools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_gpt.data import Corpus, embedded_corpus, read_documents
from keras_gpt.data.corpus import PIECE_CHARACTERS, Part


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def write_json_lines(path, documents):
    lines = [json.dumps({"text": document}) for document in documents]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_embedded_corpus_is_megabytes_of_english_in_fixed_order():
    documents = list(read_documents("embedded"))
    assert documents[:50] == list(itertools.islice(embedded_corpus(), 50))
    assert 1_500_000 < sum(map(len, documents)) < 10_000_000
    assert all(document.strip() for document in documents)
    [textwrap] = [d for d in documents if d.startswith("textwrap\n========\n")]
    assert "class TextWrapper()\n    Object for wrapping/filling text." in textwrap


def test_text_file_is_one_document_with_its_line_ends_and_no_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffTo be,\r\nor not\n\n".encode())
    assert list(read_documents(path)) == ["To be,\r\nor not\n\n"]


def test_long_file_comes_in_pieces_that_join_back_and_are_cut_after_lines(tmp_path):
    text = "".join(f"line {n} é of a long file\n" for n in range(100_000))
    path = tmp_path / "long.txt"
    path.write_text(text, encoding="utf-8")
    pieces = list(Corpus(path).pieces())
    assert len(pieces) > 2
    assert "".join(piece.text for piece in pieces) == text
    assert [p.ends_document for p in pieces] == [False] * (len(pieces) - 1) + [True]
    assert all(piece.text.endswith("\n") for piece in pieces)
    assert all(len(piece.text) <= PIECE_CHARACTERS for piece in pieces)
    assert sum(p.num_source_bytes for p in pieces) == path.stat().st_size
    assert next(Corpus([text]).pieces()).text == pieces[0].text


def test_text_without_a_newline_is_cut_before_a_space():
    pieces = list(Corpus(["word " * (PIECE_CHARACTERS // 4)]).pieces())
    assert len(pieces) == 2
    assert pieces[1].text.startswith(" word")


def test_folder_is_read_in_sorted_order_whatever_the_format(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "a.md").write_text("a")
    (tmp_path / "ignored.png").write_bytes(b"\0")
    (tmp_path / ".hidden.txt").write_text("hidden")
    write_json_lines(tmp_path / "c.jsonl", ["c 1", "c 2"])
    table = pyarrow.table({"text": ["d 1", None, "d 2"], "other": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with gzip.open(tmp_path / "sub" / "e.txt.gz", "wt") as file:
        file.write("e")
    expected = ["a", "b", "c 1", "c 2", "d 1", "d 2", "e"]
    assert list(read_documents(tmp_path)) == expected
    assert list(read_documents([tmp_path, "f"])) == [*expected, "f"]


def test_a_storage_of_fsspec_is_read_like_a_folder_of_this_machine(tmp_path):
    write_json_lines(tmp_path / "c.jsonl", ["c 1", "c 2"])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes("\ufeffé\r\n".encode())
    (tmp_path / "sub" / ".hidden.txt").write_text("hidden")
    (tmp_path / "ignored.png").write_bytes(b"\0")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"text": "b"}\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["d"]}), tmp_path / "d.parquet")
    here = fsspec.filesystem("file")
    memory = fsspec.filesystem("memory")
    memory.put(
        here.find(str(tmp_path)),
        [path.replace(str(tmp_path), "/corpus") for path in here.find(str(tmp_path))],
    )
    expected = list(read_documents(tmp_path))
    assert expected == ["b", "c 1", "c 2", "d", "é\r\n"]
    assert list(read_documents("memory://corpus")) == expected
    assert list(read_documents(f"file://{tmp_path}")) == expected
    for pattern in ("memory://corpus/*.jsonl*", str(tmp_path / "*.jsonl*")):
        assert list(read_documents(pattern)) == ["b", "c 1", "c 2"]
    corpus = Corpus("memory://corpus/c.jsonl")
    assert corpus.num_bytes == (tmp_path / "c.jsonl").stat().st_size
    before = corpus.describe()
    assert (
        json.loads(json.dumps(before)) == Corpus("memory://corpus/c.jsonl").describe()
    )
    memory.pipe("/corpus/c.jsonl", b'{"text": "other"}\n')
    assert Corpus("memory://corpus/c.jsonl").describe() != before
    with pytest.raises(FileNotFoundError, match="'memory://corpus/none'"):
        Corpus("memory://corpus/none")
    with pytest.raises(ValueError, match=r"fsspec knows.*s3://"):
        Corpus("nothing://corpus/none")


def test_a_web_server_is_read_from_the_beginning_on(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_gpt.data.corpus.PART_BYTES", 100)
    texts = [f"text {n}" for n in range(50)]
    write_json_lines(tmp_path / "a.jsonl", texts)
    handler = functools.partial(QuietHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        corpus = Corpus(f"http://127.0.0.1:{server.server_port}/a.jsonl")
        found = [piece.text for part in corpus.parts() for piece in corpus.read(part)]
        server.shutdown()
        thread.join()
    assert found == texts


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="it is there")
def test_a_missing_driver_is_named():
    with pytest.raises(ImportError, match=r"^s3://bucket/a needs .*nstall s3fs"):
        Corpus("s3://bucket/a")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_stretches_of_a_file_have_each_document_once(tmp_path, suffix):
    documents = [f"{n} " + "x" * (n % 90) for n in range(300)]
    path = tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        write_json_lines(path, documents)
    else:
        table = pyarrow.table({"text": documents})
        pyarrow.parquet.write_table(table, path, row_group_size=11)
    corpus, size = Corpus(path), path.stat().st_size
    for step in (1000, 1 + size // 2):
        stretches = [Part(0, i, [path], i + step) for i in range(0, size, step)]
        found = [piece for part in stretches for piece in corpus.read(part)]
        assert [piece.text for piece in found] == documents


def test_parts_are_small_sources_together_and_stretches_of_large_ones(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("keras_gpt.data.corpus.PART_BYTES", 100)
    large = write_json_lines(tmp_path / "large.jsonl", ["a" * 99, "b" * 99])
    text = tmp_path / "text.txt"
    text.write_text("c" * 300)
    corpus = Corpus(["x" * 60, "y" * 40, "z", large, text, "w"])
    parts = list(corpus.parts())
    assert [part[:2] for part in parts] == [
        (0, 0),
        (2, 0),
        (3, 0),
        (3, 100),
        (3, 200),
        (4, 0),
        (5, 0),
    ]
    read = [piece for part in parts for piece in corpus.read(part)]
    assert read == list(corpus.pieces())
    for part in parts:
        assert next(corpus.parts(*part[:2])) == part


@given(st.lists(st.text()).filter(any))
def test_iterable_of_texts_gives_the_texts_that_are_not_empty(texts):
    assert list(read_documents(iter(texts))) == [text for text in texts if text]


def test_lone_surrogates_of_json_become_replacement_characters(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n')
    assert list(read_documents(path)) == ["a\ufffdb"]


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'missing\.txt'"):
        list(read_documents("missing.txt"))


@pytest.mark.parametrize("source", [[], [""], ["", ""]])
def test_empty_corpus_is_refused(source):
    with pytest.raises(ValueError, match="The corpus is empty"):
        list(read_documents(source))


def test_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no documents"):
        read_documents(tmp_path).__next__()


def test_binary_file_is_named(tmp_path):
    path = tmp_path / "picture.txt"
    path.write_bytes(b"PNG\0\0\1")
    with pytest.raises(ValueError, match=r"picture\.txt is a binary file"):
        list(read_documents(path))


def test_wrong_encoding_is_named_with_the_byte_where_it_fails(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"a" * 1_500_000 + "é".encode("latin-1") + b"clair")
    with pytest.raises(ValueError, match=r"not utf-8: .* at byte 1500000.*`encoding="):
        list(read_documents(path))
    [document] = read_documents(path, encoding="latin-1")
    assert document.endswith("aéclair")


@pytest.mark.parametrize("encoding", ["utf-9", "base64", "a\0b"])
def test_an_encoding_that_python_does_not_know_is_named(encoding):
    with pytest.raises(ValueError, match=r"`encoding` must be one.*Received: "):
        Corpus(["text"], encoding=encoding)


def test_character_cut_off_at_the_end_of_the_file_is_an_error(tmp_path):
    path = tmp_path / "cut.txt"
    path.write_bytes("caf\u00e9".encode()[:-1])
    with pytest.raises(ValueError, match="at byte 3"):
        list(read_documents(path))


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"other": "a"}', '{"text": 7}', "7", "[" * 9**5]
)
def test_bad_json_line_is_named_with_its_number(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3"):
        list(read_documents(path))


def test_parquet_without_the_column_names_those_it_has(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"content": ["x"]}), path)
    with pytest.raises(ValueError, match=r"no column 'text'.*: content"):
        list(read_documents(path))
    assert list(read_documents(path, text_field="content")) == ["x"]
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="is not a Parquet file"):
        list(read_documents(broken))


def test_cut_off_gzip_file_is_named(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text " * 1000)[:-12])
    with pytest.raises(ValueError, match="damaged or cut off"):
        list(read_documents(path))


def test_suffix_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_text("%PDF")
    with pytest.raises(ValueError, match=r"unsupported suffix, '\.pdf'"):
        list(read_documents(path))


def test_mistaken_sources_are_explained(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("text")
    with pytest.raises(ValueError, match="Wrap paths"):
        Corpus([str(path)])
    with pytest.raises(ValueError, match="what looks like a text"):
        Corpus("To be\nor not to be")
    with pytest.raises(ValueError, match="Received: int"):
        Corpus(7)
    with pytest.raises(ValueError, match="an item of type int"):
        list(read_documents(iter([7])))
    assert list(read_documents([Path(path)])) == ["text"]
