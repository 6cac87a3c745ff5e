import itertools
import os
import pickle
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_gpt
from keras_gpt.data import TokenDataset, load_batches, load_texts, prepare
from keras_gpt.tokenizers import CharacterTokenizer

END = "<|endoftext|>"
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
END_ID = len(ALPHABET)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents of rising length over several shards; `val` has no separators."""
    directory = tmp_path_factory.mktemp("data")
    documents = [(ALPHABET * 3)[n : 2 * n + 2] for n in range(25)]
    tokenizer = CharacterTokenizer(ALPHABET, [END])
    prepare(
        documents,
        directory / "documents",
        tokenizer,
        validation_fraction=0,
        shard_size=50,
        progress=False,
    )
    tokenizer = CharacterTokenizer(ALPHABET)
    prepare(
        [ALPHABET * 10], directory / "stream", tokenizer, shard_size=99, progress=False
    )
    return directory


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


MODES = [
    ("stream", {}),
    ("stream", {"order": "sequential"}),
    ("documents", {"packing": "documents"}),
    ("documents", {"packing": "documents", "order": "sequential"}),
]


@pytest.mark.parametrize(("name", "options"), MODES)
def test_start_step_equals_skipping_the_steps_before(data, name, options):
    path = data / name
    batches = take(load_batches(path, "train", 2, 8, seed=5, **options), 9)
    for start in (0, 1, 8):
        started = load_batches(path, "train", 2, 8, 5, start_step=start, **options)
        assert_equal(take(started, 9 - start), batches[start:])


@pytest.mark.parametrize(("name", "options"), MODES)
def test_processes_share_each_batch(data, name, options):
    path = data / name
    whole = take(load_batches(path, "train", 4, 8, drop_remainder=True, **options), 4)
    parts = [
        take(
            load_batches(
                path, "train", 4, 8, process_index=index, process_count=2, **options
            ),
            4,
        )
        for index in range(2)
    ]
    joined = [
        tuple(np.concatenate(pair) for pair in zip(*two, strict=True))
        for two in zip(*parts, strict=True)
    ]
    assert_equal(joined, whole)


def test_a_smaller_last_batch_is_padded_with_rows_of_no_weight(data):
    path, options = data / "stream", {"order": "sequential"}
    [*whole, last] = load_batches(path, "val", 16, 8, **options)
    parts = [
        list(
            load_batches(
                *(path, "val", 16, 8),
                pad_remainder=True,
                process_index=index,
                process_count=2,
                **options,
            )
        )
        for index in range(2)
    ]
    joined = [
        tuple(np.concatenate(pair) for pair in zip(*two, strict=True))
        for two in zip(*parts, strict=True)
    ]
    assert_equal([batch[:2] for batch in joined[:-1]], whole)
    num_rows = len(last[0])
    assert 0 < num_rows < 16
    assert all((batch[2] == 1).all() for batch in joined[:-1])
    assert_equal([tuple(part[:num_rows] for part in joined[-1][:2])], [last])
    counts = joined[-1][2].sum(axis=1)
    np.testing.assert_array_equal(counts, [8] * num_rows + [0] * (16 - num_rows))


@given(seed=st.integers(0, 2**64), step=st.integers(0, 2**40))
def test_random_windows_depend_on_seed_and_step_alone(data, seed, step):
    path = data / "stream"
    batches = load_batches(path, "train", 3, 8, seed, start_step=step, num_steps=2)
    assert len(batches) == 2
    first, second = list(batches)
    assert_equal(list(batches), [first, second])
    x, y = first
    assert x.dtype == y.dtype == np.int32
    assert x.shape == y.shape == (3, 8)
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    # The text is the alphabet over and over: each target is the letter after.
    np.testing.assert_array_equal((x + 1) % 26, y)


def test_random_windows_start_everywhere_equally_often_and_steps_are_independent(data):
    batches = take(load_batches(data / "stream", "val", 50, 20, seed=1).repeat(), 200)
    firsts = np.stack([x[:, 0] for x, _ in batches])
    # 26 tokens and windows of 21: starts 0 to 5, 10000 draws; 5 sigma is 186.
    counts = np.bincount(firsts.ravel(), minlength=26)
    assert np.flatnonzero(counts).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.abs(counts[:6] - 10_000 / 6).max() < 190
    # Overlapping streams would repeat a batch's draws, shifted, in the next.
    for one, other in itertools.pairwise(firsts):
        for shift in range(1, 17):
            assert (one[shift:] != other[:-shift]).any()
    other_seed = take(load_batches(data / "stream", "val", 50, 20, seed=2), 1)
    assert (other_seed[0][0][:, 0] != firsts[0]).any()


def test_each_random_pass_has_every_token_once_cut_at_another_place():
    # 14 windows of 8, at whose starts the text comes out even
    letters = "".join(map(chr, range(200, 320)))
    batches = load_texts([letters], CharacterTokenizer(letters), 7, 8, seed=1)
    rows = np.concatenate([x for x, _ in take(batches.repeat(), 6)])
    first_tokens = set()
    for one_pass in rows.reshape(3, 14, 8):
        first = int(one_pass.min())
        first_tokens.add(first)
        in_order = one_pass[np.argsort(one_pass[:, 0])]
        np.testing.assert_array_equal(in_order.ravel(), np.arange(first, first + 112))
        assert (in_order != one_pass).any()
    assert len(first_tokens) == 3


@given(batch_size=st.integers(1, 40), length=st.integers(1, 60))
def test_sequential_pass_has_every_token_once_up_to_the_last_window(
    data, batch_size, length
):
    path = data / "stream"
    tokens = TokenDataset(path, "train")
    batches = load_batches(path, "train", batch_size, length, order="sequential")
    items = list(batches)
    num_rows = (len(tokens) - 1) // length
    assert len(batches) == len(items) == -(-num_rows // batch_size)
    assert all(len(x) == batch_size for x, _ in items[:-1])
    covered = num_rows * length
    inputs = np.concatenate([x.ravel() for x, _ in items])
    targets = np.concatenate([y.ravel() for _, y in items])
    np.testing.assert_array_equal(inputs, tokens[:covered])
    np.testing.assert_array_equal(targets, tokens[1 : covered + 1])


@given(batch_size=st.integers(1, 8), length=st.integers(2, 40))
def test_packing_trains_each_token_of_each_document_once_and_mixes_none(
    data, batch_size, length
):
    path = data / "documents"
    tokens = TokenDataset(path, "train")
    batches = load_batches(
        path, "train", batch_size, length, order="sequential", packing="documents"
    )
    pairs = []
    for x, y, weight in batches:
        assert x.dtype == y.dtype == np.int32
        assert weight.dtype == np.float32
        trained = weight == 1
        assert ((weight == 0) == (x == END_ID)).all()
        pairs += zip(x[trained].tolist(), y[trained].tolist(), strict=True)
        inside = trained[:, :-1] & (y[:, :-1] != END_ID)
        np.testing.assert_array_equal(x[:, 1:][inside], y[:, :-1][inside])
    stream = tokens[:].tolist()
    expected = [pair for pair in itertools.pairwise(stream) if pair[0] != END_ID]
    assert sorted(pairs) == sorted(expected)


def test_each_epoch_of_packed_documents_has_every_row_once_in_new_order(data):
    path = data / "documents"
    in_order = load_batches(
        path, "train", 1, 16, order="sequential", packing="documents"
    )
    rows = [x.tobytes() for x, _, _ in in_order]
    random = load_batches(path, "train", 1, 16, packing="documents").repeat()
    taken = [x.tobytes() for x, _, _ in take(random, 2 * len(rows))]
    first, second = taken[: len(rows)], taken[len(rows) :]
    assert sorted(first) == sorted(second) == sorted(rows)
    assert first != second


@pytest.mark.parametrize(("name", "options"), MODES)
def test_a_dataset_is_one_pass_and_ends_unless_it_is_repeated(data, name, options):
    tokens = TokenDataset(data / name, "train")
    batches = load_batches(data / name, "train", 2, 8, **options)
    one_pass = list(batches)
    assert len(batches) == len(one_pass)
    if "packing" not in options:  # as many windows as fit, none more
        assert len(one_pass) == -(-((len(tokens) - 1) // 8) // 2)
    two = take(batches.repeat(), 2 * len(one_pass))
    assert_equal(two[: len(one_pass)], one_pass)
    if "order" in options:
        assert_equal(two[len(one_pass) :], one_pass)
    else:  # goes on with others, as from a later step
        later = load_batches(
            data / name, "train", 2, 8, start_step=len(one_pass), **options
        )
        assert_equal(two[len(one_pass) :], list(later))
        assert (two[len(one_pass)][0] != one_pass[0][0]).any()


def test_an_epoch_of_fit_is_one_pass_with_other_windows_each_time(data):
    tokenizer = CharacterTokenizer(ALPHABET)
    config = keras_gpt.GPTConfig(
        vocab_size=26,
        context_length=8,
        embedding_dimension=8,
        num_layers=1,
        num_heads=1,
    )
    model = keras_gpt.GPT(config)
    model.compile(keras.optimizers.SGD(0.0))
    texts = [ALPHABET * 2, ALPHABET]
    batches = load_texts(texts, tokenizer, 2, 8)
    assert len(batches) == 5  # 9 windows
    validation = load_texts(texts, tokenizer, 2, 8, order="sequential")
    history = model.fit(batches, epochs=2, validation_data=validation, verbose=0)
    # nothing was learned: what differs is what was seen
    assert len(set(history.history["loss"])) == 2
    assert len(set(history.history["val_loss"])) == 1
    assert model.optimizer.iterations == 2 * 5
    x, y = (np.concatenate(parts) for parts in zip(*validation, strict=True))
    np.testing.assert_array_equal(x.ravel(), np.arange(72) % 26)
    np.testing.assert_array_equal(y.ravel(), np.arange(1, 73) % 26)


def test_tokens_pickle_by_name_and_read_the_same(data):
    tokens = TokenDataset(data / "stream", "train")
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled)[90:110], tokens[90:110])
    assert len(tokens[5:3]) == len(tokens[len(tokens) :]) == 0


def test_iterator_state_restores(data):
    iterator = iter(load_batches(data / "stream", "train", 2, 8))
    next(iterator)
    state = iterator.get_state()
    expected = next(iterator)
    iterator.set_state(state)
    assert_equal([next(iterator)], [expected])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: batch_size=0"),
        ({"sequence_length": -1}, "`sequence_length` must be at least 1"),
        ({"sequence_length": 234}, "the split, 234.*take sequence_length=233 or less"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"start_step": -1}, "`start_step` must be at least 0"),
        ({"num_steps": 0}, "`num_steps` must be at least 1"),
        ({"order": "sorted"}, "Unknown `order`.*One of: random, sequential"),
        ({"packing": "bins"}, "Unknown `packing`.*One of: windows, documents"),
        ({"packing": "documents"}, "without an end-of-text token"),
        ({"split": "test"}, "`split` must be one of those in .*: train, val"),
        ({"vocab_size": 20}, "`vocab_size` must be at least 26"),
        ({"process_count": 3}, "`process_count` must divide `batch_size`"),
        ({"process_index": 1}, "`process_index` be below"),
        ({"order": "sequential", "start_step": 15}, "below the 15 batches"),
        (
            {"order": "sequential", "batch_size": 64, "drop_remainder": True},
            "`batch_size` must be at most 29",
        ),
    ],
)
def test_bad_argument_says_the_way_out(data, options, message):
    arguments = {"split": "train", "batch_size": 2, "sequence_length": 8, **options}
    with pytest.raises(ValueError, match=message):
        load_batches(data / "stream", **arguments)


@pytest.mark.parametrize("place", [0, 40, -1])
@pytest.mark.parametrize("file", ["val-00000.bin", "val-documents.bin"])
def test_a_flipped_byte_is_found_when_batches_are_loaded(
    data, tmp_path, monkeypatch, file, place
):
    folder = shutil.copytree(data / "stream", tmp_path / "copy")
    content = bytearray((folder / file).read_bytes())
    content[min(place, len(content) - 1)] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{file} has another checksum"):
        load_batches(folder, "val", 2, 8)
    load_batches(folder, "val", 2, 8, verify=False)
    load_batches(folder, "train", 2, 8)
    # in more than a GB, while batches are read
    monkeypatch.setattr("keras_gpt.data.shards._BYTES_AT_ONCE", 20)
    batches = load_batches(folder, "val", 2, 8).repeat()
    with pytest.raises(ValueError, match=f"{file} has another checksum"):
        take(batches, 1_000_000)


@pytest.mark.parametrize("metadata", ["null", "[1]", '{"splits": null}', "{}", "{"])
def test_damaged_metadata_is_named(tmp_path, metadata):
    (tmp_path / "metadata.json").write_text(metadata)
    with pytest.raises(ValueError, match=r"metadata\.json is (damaged|not valid JSON)"):
        load_batches(tmp_path, "train", 2, 8)


def test_directory_that_is_not_prepared_is_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run `keras-gpt prepare`"):
        load_batches(tmp_path, "train", 2, 8)


def make_model():
    model = keras.Sequential(
        [
            keras.Input((8,), dtype="int32"),
            keras.layers.Embedding(END_ID + 1, 32),
            keras.layers.Dense(END_ID + 1),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


@pytest.mark.every_backend
def test_fit_learns_from_batches_and_validates_in_full(data):
    path = data / "stream"
    validation = load_batches(path, "val", 2, 8, order="sequential")
    model = make_model()
    history = model.fit(
        load_batches(path, "train", 4, 8).repeat(),
        steps_per_epoch=30,
        epochs=3,
        shuffle=False,
        validation_data=validation,
        validation_steps=len(validation),
        verbose=0,
    ).history
    assert history["val_loss"][-1] < 0.1
    x, y = (np.concatenate(parts) for parts in zip(*validation, strict=True))
    # The last batch is smaller, and still every window counts the same.
    assert len(x) == 3
    whole = model.evaluate(x, y, verbose=0)
    assert whole == pytest.approx(history["val_loss"][-1], rel=1e-5)


@pytest.mark.every_backend
def test_fit_takes_packed_documents_with_weights(data):
    batches = load_batches(data / "documents", "train", 4, 8, packing="documents")
    batches = batches.repeat()
    history = (
        make_model()
        .fit(batches, steps_per_epoch=30, epochs=2, shuffle=False, verbose=0)
        .history
    )
    assert history["loss"][1] < history["loss"][0] / 2


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_loading_batches_loads_no_tensorflow(data, backend):
    program = (
        "import sys\n"
        "from keras_gpt.data import load_batches\n"
        "assert 'grain' not in sys.modules\n"
        f"next(iter(load_batches({str(data / 'stream')!r}, 'train', 2, 8)))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
