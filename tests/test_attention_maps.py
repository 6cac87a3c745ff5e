import io

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from keras_gpt import GPT, CharacterTokenizer, GPTConfig, LanguageModel
from keras_gpt.language_model import Attention

TEXT = "say $x$\n"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_kv_heads": 2, "position_embedding": "rotary", "sliding_window": 3},
        {"document_separator_id": 1},
    ],
    ids=["gpt2", "grouped_heads_and_a_window", "packed"],
)
def test_each_token_attends_to_itself_and_those_before(fields):
    tokenizer = CharacterTokenizer.train([TEXT], progress=False)
    model = GPT(
        GPTConfig(
            vocab_size=tokenizer.vocab_size,
            context_length=8,
            embedding_dimension=16,
            num_layers=2,
            num_heads=4,
            **fields,
        )
    )
    lm = LanguageModel(model, tokenizer)
    found = lm.attention(TEXT)
    assert found.text == TEXT
    assert found.tokens == list(TEXT)
    assert found.weights.shape == (2, 4, 8, 8)
    np.testing.assert_allclose(found.weights.sum(-1), 1, atol=1e-6)  # float32
    assert not np.triu(found.weights, 1).any()
    outside = np.tril(found.weights, -fields.get("sliding_window", 8))
    assert not outside.any()
    with pytest.raises(ValueError, match="must have 1 to 8 tokens"):
        lm.attention(TEXT + "s")
    with pytest.raises(ValueError, match="is empty"):
        lm.attention("")


def test_a_picture_has_a_map_for_each_head_of_the_layers_wanted(tmp_path):
    # all attention on the token itself: a black diagonal in each of 3 x 2 maps
    weights = np.broadcast_to(np.eye(4, dtype="float32"), (3, 2, 4, 4))
    attention = Attention("$ 日\n", ["$", " ", "日", "\n"], weights)

    def count_black(picture):
        pixels = (matplotlib.image.imread(io.BytesIO(picture)) * 255).round()
        darkest = matplotlib.colormaps["magma_r"](1.0, bytes=True)
        return int((pixels == darkest).all(axis=-1).sum())

    side = 32  # of a weight, where there is room
    bar = 100  # at most, of the bar that explains the colors
    attention.save(tmp_path / "new" / "all.png")
    black = count_black((tmp_path / "new" / "all.png").read_bytes())
    assert 0 <= black - 3 * 2 * 4 * side**2 < bar
    assert 0 <= count_black(attention.draw([2])) - 2 * 4 * side**2 < bar
    for layers in ([3], [-1], []):
        with pytest.raises(ValueError, match="`layers` must be some from 0 to 2"):
            attention.save(tmp_path / "none.png", layers)
    long = Attention("", [""] * 500, np.zeros((1, 6, 500, 500), "float32"))
    with pytest.raises(ValueError, match="6 heads and 1 layers for 500 tokens is too"):
        long.draw()
    assert not (tmp_path / "none.png").exists()
