import gzip
import json

import fsspec
import keras
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from keras_gpt import GPT, GPTConfig
from keras_gpt.data import Example, load_examples, read_records

SEPARATOR = 1


def make_examples(count, seed=0, longest=12):
    """Examples of a prompt and an answer that ends with the separator."""
    generator = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length = int(generator.integers(3, longest + 1))
        answer = int(generator.integers(1, length))
        ids = [*generator.integers(2, 20, length - 1).tolist(), SEPARATOR]
        examples.append(Example(ids, [i >= length - answer for i in range(length)]))
    return examples


def rows_of(batches):
    return [np.concatenate(arrays) for arrays in zip(*batches, strict=True)]


def test_records_are_read_from_json_lines_and_parquet_with_their_places(tmp_path):
    records = [{"prompt": f"{i}", "completion": "ü"} for i in range(3)]
    text = "\n".join(map(json.dumps, records)) + "\n\n"
    (tmp_path / "a.jsonl").write_text(text)
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(text)
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "a.parquet")
    for name, place in (
        ("a.jsonl", "line"),
        ("a.jsonl.gz", "line"),
        ("a.parquet", "row"),
    ):
        expected = [(f"{name}, {place} {i + 1}", r) for i, r in enumerate(records)]
        assert list(read_records(tmp_path / name)) == expected
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.jsonl"), "/records/a.jsonl")
    assert [record for _, record in read_records("memory://records/*.jsonl")] == records


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2 is not valid JSON"),
        ("a.jsonl", "[1]\n", "line 1 must be an object"),
        ("a.jsonl", '{"a":' * 100_000, "a.jsonl, line 1 is not valid JSON"),
        ("a.jsonl", '{"a": "\xe9"}', "a.jsonl, line 1 is not valid JSON: 'utf-8"),
        ("a.jsonl", "\n\n", "a.jsonl has no records"),
        ("a.jsonl.gz", "no", "a.jsonl.gz is damaged or cut off"),
        ("a.parquet", "no", "is not a Parquet file"),
        ("a.csv", "a,b", "are read from .jsonl"),
    ],
)
def test_a_bad_file_of_records_is_refused_by_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=message):
        list(read_records(tmp_path / name))


def test_a_missing_file_of_records_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no examples at"):
        list(read_records(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("separator_id", [None, SEPARATOR])
def test_the_weights_count_exactly_the_answers(separator_id):
    examples = make_examples(50)
    batches = load_examples(
        examples, 4, 24, separator_id=separator_id, order="sequential"
    )
    token_ids, targets, weights = rows_of(batches)
    assert weights.sum() == sum(sum(e.is_answer[1:]) for e in examples)
    # and they are the answers' ids, whatever row they came to
    answers = sorted(
        token_id
        for example in examples
        for token_id, is_answer in list(
            zip(example.token_ids, example.is_answer, strict=True)
        )[1:]
        if is_answer
    )
    assert sorted(targets[weights == 1].tolist()) == answers
    assert len(token_ids) == (50 if separator_id is None else len(token_ids))


def test_packing_fills_rows_and_keeps_every_example_whole():
    examples = make_examples(200)
    batches = load_examples(examples, 8, 32, separator_id=SEPARATOR, order="sequential")
    token_ids, _, _ = rows_of(batches)
    total = sum(len(e.token_ids) for e in examples)
    assert len(token_ids) <= total / 32 * 1.1  # nine tenths of the room is used
    found = []
    for row in token_ids.tolist():
        while SEPARATOR in row:
            end = row.index(SEPARATOR) + 1
            found.append(row[:end])
            row = row[end:]
    found = [ids for ids in found if ids != [SEPARATOR]]  # padding
    assert sorted(found) == sorted(e.token_ids for e in examples)


@pytest.mark.every_backend
@pytest.mark.parametrize("position_embedding", ["learned", "rotary"])
def test_the_loss_of_packed_examples_equals_that_of_each_alone(position_embedding):
    keras.utils.set_random_seed(0)
    config = GPTConfig(
        vocab_size=20,
        context_length=32,
        embedding_dimension=16,
        num_layers=2,
        num_heads=2,
        position_embedding=position_embedding,
        document_separator_id=SEPARATOR,
    )
    model = GPT(config)
    model.compile(jit_compile=False)
    examples = make_examples(24)

    def loss(separator_id):
        batches = load_examples(
            examples, 100, 32, separator_id=separator_id, order="sequential"
        )
        [batch] = list(batches)
        return float(
            model.evaluate(
                *batch[:2], sample_weight=batch[2], batch_size=100, verbose=0
            )
        )

    # float32 sums of 150 losses near 3, in another order
    np.testing.assert_allclose(loss(SEPARATOR), loss(None), rtol=1e-5)


def test_every_epoch_has_all_examples_in_another_order_and_starts_at_any_step():
    examples = make_examples(12)
    batches = load_examples(examples, 3, 12, seed=3)
    assert len(batches) == 4
    iterator = iter(batches.repeat())
    steps = [next(iterator) for _ in range(12)]
    epochs = [np.concatenate([s[0] for s in steps[i : i + 4]]) for i in (0, 4, 8)]
    assert not np.array_equal(epochs[0], epochs[1])
    for epoch in epochs[1:]:
        assert sorted(epoch.tolist()) == sorted(epochs[0].tolist())
    later = next(iter(load_examples(examples, 3, 12, seed=3, start_step=7)))
    for ours, theirs in zip(later, steps[7], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_examples_that_do_not_fit_are_refused():
    example = Example([5, SEPARATOR, 6, SEPARATOR], [False, True, True, True])
    with pytest.raises(ValueError, match="holds the id 1, which separates"):
        load_examples([example], 1, 8, separator_id=SEPARATOR)
    with pytest.raises(ValueError, match="`sequence_length` must be at least 3"):
        load_examples([example], 1, 2)
    with pytest.raises(ValueError, match="no examples"):
        load_examples([], 1, 8)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        load_examples([example], 0, 8)
    with pytest.raises(ValueError, match="`sequence_length` must be at least 1"):
        load_examples([example], 1, 0)
    with pytest.raises(ValueError, match=r"Unknown `order`.*order=.up"):
        load_examples([example], 1, 8, order="up")
