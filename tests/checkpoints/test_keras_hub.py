"""Models of KerasHub: the same logits and ids."""

import io
import json
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest
import sentencepiece
from keras import ops

from keras_gpt import LanguageModel
from keras_gpt.checkpoints.keras_hub import read_keras_hub
from keras_gpt.tokenizers import BytePairTokenizer, SentencePieceTokenizer

# Sums in another order: 5e-6 at most was seen, of logits up to 3
TOLERANCE = 1e-5

LLAMA = {
    "vocabulary_size": 600,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 32,
    "intermediate_dim": 48,
    "rope_max_wavelength": 5e5,
}
LLAMA3_SCALING = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 32,
}
GPT2 = {
    "vocabulary_size": 600,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 32,
    "intermediate_dim": 80,
    "max_sequence_length": 128,
}
CASES = {
    "gpt2": ("GPT2Backbone", "GPT2CausalLM", GPT2),
    "llama": ("LlamaBackbone", "LlamaCausalLM", LLAMA),
    "llama, tied": (
        "LlamaBackbone",
        "LlamaCausalLM",
        {**LLAMA, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-3},
    ),
    "llama 3.1": (
        "Llama3Backbone",
        "Llama3CausalLM",
        {**LLAMA, **LLAMA3_SCALING},
    ),
    "mistral, window shorter than the text": (
        "MistralBackbone",
        "MistralCausalLM",
        {**LLAMA, "sliding_window": 20, "head_dim": 16, "rope_scaling_factor": 2.0},
    ),
    "qwen 2": ("QwenBackbone", "QwenCausalLM", LLAMA),
    # KerasHub 0.32 hands its epsilon to all layers but the heads' own
    "qwen 3": (
        "Qwen3Backbone",
        "Qwen3CausalLM",
        {**LLAMA, "head_dim": 16, "layer_norm_epsilon": 1e-5},
    ),
}


@pytest.fixture(scope="session")
def hub():
    """KerasHub's models; its import takes seconds, and loads TensorFlow."""
    import keras_hub

    return keras_hub.models


@pytest.fixture
def make(hub, randomize):
    """A function that makes a model of KerasHub with random weights."""

    def build(case, preprocessor=None):
        backbone, model, settings = CASES[case]
        backbone = getattr(hub, backbone)(**settings)
        randomize(backbone.weights)
        return getattr(hub, model)(backbone, preprocessor=preprocessor)

    return build


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_keras_hub(case, make, token_ids, logits_of):
    reference = make(case)
    ids = token_ids[:, :100]
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    expected = ops.convert_to_numpy(ops.stop_gradient(reference(inputs)))
    assert np.abs(expected).max() > 1
    model = read_keras_hub(reference).build_model()
    np.testing.assert_allclose(logits_of(model, ids), expected, atol=TOLERANCE, rtol=0)


def test_a_backbone_gives_the_model_alone(make, token_ids, logits_of):
    reference = make("llama")
    checkpoint = read_keras_hub(reference.backbone)
    assert checkpoint.tokenizer is None
    model = checkpoint.build_model()
    again = read_keras_hub(reference).build_model()
    assert np.array_equal(logits_of(model, token_ids), logits_of(again, token_ids))


# --- Tokenizers ---

GPT2_NAMES = ("<|endoftext|>",)
LLAMA3_NAMES = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
QWEN_NAMES = ("<|endoftext|>", "<|im_end|>")
# KerasHub 0.32 doesn't cut text into words before it merges: one space, no digits
ORDINARY = [
    "The value of this statement is the name of a function, and it returns an object.",
    "If the class has an attribute, the name is bound to it; see also the module.",
    "Ελληνικά и русский, 中文",
]


def take_apart(documents, names):
    """Vocabulary and merges as KerasHub wants them."""
    tokenizer = BytePairTokenizer.train(
        documents, 600, special_tokens=names, progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        content = json.loads((Path(folder) / "tokenizer.json").read_text("utf-8"))
    vocabulary = {**content["model"]["vocab"], **tokenizer.special_tokens}
    return vocabulary, [" ".join(merge) for merge in content["model"]["merges"]]


@pytest.fixture(scope="module")
def preprocessors(hub, documents):
    """For each kind its preprocessor."""
    kinds = {
        "gpt2": (hub.GPT2CausalLMPreprocessor, hub.GPT2Tokenizer, GPT2_NAMES),
        "llama 3.1": (
            hub.Llama3CausalLMPreprocessor,
            hub.Llama3Tokenizer,
            LLAMA3_NAMES,
        ),
        "qwen 2": (hub.QwenCausalLMPreprocessor, hub.QwenTokenizer, QWEN_NAMES),
    }
    return {
        kind: preprocess(tokenize(*take_apart(documents, names)), sequence_length=96)
        for kind, (preprocess, tokenize, names) in kinds.items()
    }


@pytest.mark.parametrize("kind", ["gpt2", "llama 3.1", "qwen 2"])
def test_ids_equal_those_of_keras_hub(kind, make, preprocessors):
    preprocessor = preprocessors[kind]
    tokenizer = read_keras_hub(make(kind, preprocessor)).tokenizer
    for text in ORDINARY:
        ids = np.asarray(preprocessor.tokenizer(text)).tolist()
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
    assert set(tokenizer.special_tokens) == set(preprocessor.tokenizer.special_tokens)
    for name, token_id in tokenizer.special_tokens.items():
        assert preprocessor.tokenizer.token_to_id(name) == token_id
        assert tokenizer.encode(f"{name} of", allow_special=True)[0] == token_id
        assert token_id not in tokenizer.encode(name)


def test_words_are_cut_as_the_makers_of_the_model_cut_them(make, preprocessors):
    text = "12345  x"
    cuts = {
        kind: read_keras_hub(make(kind, preprocessor)).tokenizer.encode(text)
        for kind, preprocessor in preprocessors.items()
    }
    # GPT-2 keeps digits together, Llama 3 cuts by three, Qwen one by one
    tokens = {
        "gpt2": ["12345", " ", " x"],
        "llama 3.1": ["123", "45", " ", " x"],
        "qwen 2": ["1", "2", "3", "4", "5", " ", " x"],
    }
    for kind, preprocessor in preprocessors.items():
        tokenizer = read_keras_hub(make(kind, preprocessor)).tokenizer
        expected = [i for token in tokens[kind] for i in tokenizer.encode(token)]
        assert cuts[kind] == expected


@pytest.mark.parametrize("kind", ["gpt2", "llama 3.1", "qwen 2"])
def test_prompts_begin_and_answers_end_as_in_keras_hub(kind, make, preprocessors):
    preprocessor = preprocessors[kind]
    lm = LanguageModel.from_pretrained(make(kind, preprocessor))
    inputs = preprocessor.generate_preprocess(ORDINARY[0], sequence_length=90)
    length = int(np.asarray(inputs["padding_mask"]).sum())
    ids = np.asarray(inputs["token_ids"])[:length].tolist()
    assert lm.tokenizer.start_ids + lm.tokenizer.encode(ORDINARY[0]) == ids
    assert lm.stop_ids[0] == preprocessor.tokenizer.end_token_id
    assert lm.model.config.context_length == (128 if kind == "gpt2" else 96)
    assert lm.source["architecture"] == kind.split()[0].replace("qwen", "qwen2")


def test_greedy_text_equals_that_of_keras_hub(make, preprocessors):
    reference = make("gpt2", preprocessors["gpt2"])
    reference.compile(sampler="greedy")
    prompt = ORDINARY[0]
    text = reference.generate(prompt, max_length=40, stop_token_ids=None)
    lm = LanguageModel.from_pretrained(reference)
    start = len(lm.tokenizer.start_ids + lm.tokenizer.encode(prompt))
    ours = lm.generate(prompt, max_new_tokens=40 - start, temperature=0, stop_ids=())
    assert prompt + ours.replace("<|endoftext|>", "") == text


def test_llama_2s_pieces_become_byte_pairs(hub, make, documents):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents[:10]),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        max_sentence_length=10**6,
    )
    tokenizer = hub.LlamaTokenizer(model.getvalue())
    preprocessor = hub.LlamaCausalLMPreprocessor(tokenizer, sequence_length=96)
    ours = read_keras_hub(make("llama", preprocessor)).tokenizer
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    for text in [*ORDINARY, *documents[10:20], "  two  spaces \n\n 😀"]:
        ids = processor.encode(text)
        assert ours.encode(text) == ids, text[:80]
        assert ours.decode(ids) == text
    assert np.asarray(tokenizer(ORDINARY[0])).tolist() == ours.encode(ORDINARY[0])
    assert ours.start_ids == [tokenizer.start_token_id]
    assert not isinstance(ours, SentencePieceTokenizer)


# --- What isn't supported ---


def test_another_class_is_named(hub):
    backbone = hub.OPTBackbone(50, 1, 2, 8, 16, max_sequence_length=8)
    with pytest.raises(ValueError, match="Received: OPTBackbone"):
        read_keras_hub(backbone)
    with pytest.raises(ValueError, match="Received: Sequential"):
        read_keras_hub(keras.Sequential())
    with pytest.raises(ValueError, match="Received: int"):
        read_keras_hub(3)


def test_a_model_with_adapters_is_refused(make):
    reference = make("llama")
    reference.backbone.enable_lora(2)
    with pytest.raises(ValueError, match=r"lora_kernel.*no place"):
        read_keras_hub(reference).build_model()


@pytest.mark.parametrize("name", ["no_such_preset", "kaggle://one/two", "./nowhere"])
def test_an_unknown_preset_is_one_line(name):
    with pytest.raises(FileNotFoundError, match="can't be loaded") as caught:
        LanguageModel.from_pretrained(f"keras_hub://{name}")
    assert "\n" not in str(caught.value)
    assert f"keras_hub://{name}" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_saved_preset_is_read_from_its_folder(make, preprocessors, tmp_path):
    reference = make("gpt2", preprocessors["gpt2"])
    reference.save_to_preset(str(tmp_path))
    lm = LanguageModel.from_pretrained(f"keras_hub://{tmp_path}")
    for one, other in zip(
        read_keras_hub(reference).build_model().weights, lm.model.weights, strict=True
    ):
        assert np.array_equal(ops.convert_to_numpy(one), ops.convert_to_numpy(other))
    assert lm.tokenizer.encode(ORDINARY[0])
