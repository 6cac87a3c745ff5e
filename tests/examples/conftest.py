import pytest

import keras_gpt
import keras_gpt.tokenizers


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """The folder of a small chat model with random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    end = "<|im_end|>"
    tokenizer = keras_gpt.BytePairTokenizer.train(
        ["Translate from English to German."],
        300,
        special_tokens=["<|endoftext|>", end],
    )
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=512,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
        activation="gelu_tanh",  # as llama.cpp has it
    )
    template = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    keras_gpt.LanguageModel(
        keras_gpt.GPT(config),
        tokenizer,
        chat_template=keras_gpt.tokenizers.ChatTemplate(template),
        stop_ids=[tokenizer.token_id(end)],
    ).save(folder)
    return folder
