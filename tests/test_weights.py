import threading

import keras
import numpy as np
import pytest

from keras_gpt import GPT, GPTConfig
from keras_gpt.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def model():
    model = GPT(
        GPTConfig(
            vocab_size=11,
            context_length=8,
            embedding_dimension=8,
            num_layers=1,
            num_heads=2,
        )
    )
    model.compile(keras.optimizers.Adam())
    return model


@pytest.fixture
def path(model, tmp_path):
    save_weights(model, tmp_path / "model.weights.h5")
    return tmp_path / "model.weights.h5"


@pytest.mark.every_backend
def test_keras_alone_reads_the_file_with_its_checksum(model, path):
    other = GPT(model.config)
    other.load_weights(path)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_file_without_a_checksum_is_read(model, path):
    path.write_bytes(path.read_bytes()[:-24])  # as Keras writes it
    other = GPT(model.config)
    load_weights(other, path)
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_flipped_byte_anywhere_is_found_and_the_file_named(model, path):
    content = path.read_bytes()
    for place in [*range(0, len(content) - 24, len(content) // 40), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"model\.weights\.h5 is damaged"):
            load_weights(model, path)


@pytest.mark.every_backend
def test_a_model_keeps_its_optimizer_while_it_is_saved(model, path):
    seen = set()
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            seen.add(model.optimizer is None)

    watcher = threading.Thread(target=watch)
    watcher.start()
    save_weights(model, path)
    stop.set()
    watcher.join()
    assert seen == {False}
