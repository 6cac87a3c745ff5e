"""SmolLM2-135M-Instruct, a real chat model, beside Transformers."""

import numpy as np
import pytest
from keras import ops

import keras_gpt
from keras_gpt import LanguageModel, checkpoints

SUBJECTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):",
    "Water boils at",
    "The three primary colours are",
    "Dear Sir or Madam,",
    "1, 2, 3, 4, 5,",
    "In 1969, Neil Armstrong",
    "To make bread you need",
    "import numpy as np",
)
QUESTIONS = (
    "What is the capital of Italy?",
    "Write a short poem about rain.",
    "Explain gravity to a child.",
    "List five animals that live in the sea.",
    "How do I sort a list in Python?",
    "Translate 'good morning' to French.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "Who wrote Hamlet?",
    "What is 7 times 8?",
)


@pytest.fixture(scope="module")
def lm(smollm2_file):
    return LanguageModel.from_pretrained("smollm2", dtype="float32")


@pytest.fixture(scope="module")
def prompts(lm):
    chats = [
        lm.chat_template.render([{"role": "user", "content": question}])
        for question in QUESTIONS
    ]
    return [
        *(lm.tokenizer.encode(text) for text in SUBJECTS),
        *(lm.tokenizer.encode(text, allow_special=True) for text in chats),
    ]


@pytest.fixture(scope="module")
def theirs(smollm2_file):
    """Transformers' model, its weights dequantized here, not by keras_gpt."""
    import gguf
    import torch
    import transformers

    reader = gguf.GGUFReader(smollm2_file)
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
    }
    weights = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        *block, part, suffix = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):
            # llama.cpp's converter put the rows of each rotated pair together
            pairs = values.reshape(-1, 32, 2, 576)
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{block[1]}." if block else ""
        weights[f"{prefix}{parts[part]}.{suffix}"] = torch.tensor(values)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model = transformers.LlamaForCausalLM(config).eval()
    model.load_state_dict(weights)
    return model


def test_greedy_text_equals_that_of_transformers(lm, theirs, prompts):
    # If each of our tokens is the likeliest by Transformers after those before it, its
    # own greedy text is the same: one reading instead of 50 steps.
    import torch

    prompts = prompts[::2]  # texts and chats
    rows = keras_gpt.generate(
        lm.model, prompts, max_new_tokens=50, temperature=0, stop_ids=lm.stop_ids
    )
    for prompt, row in zip(prompts, rows, strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([prompt + row])).logits[0]
        likeliest = logits[len(prompt) - 1 :].argmax(dim=-1).tolist()
        assert row == likeliest[: len(row)]
        # a shorter one ended because the next was a stop id
        assert len(row) == 50 or likeliest[len(row)] in lm.stop_ids
    assert sum(map(len, rows)) > 250


@pytest.mark.every_backend
def test_logits_equal_those_of_transformers(lm, theirs, prompts):
    import torch

    ids = np.array([prompts[11][:20] + prompts[1][:8]])
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    logits = ops.convert_to_numpy(ops.stop_gradient(lm.model(ids)))
    # float32 sums of 1,536 products in another order, in 30 layers; logits of 20
    np.testing.assert_allclose(logits, expected, atol=1e-3)


def test_it_answers_a_question(lm):
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = lm.chat([question], 32, temperature=0)
    assert "Paris" in answer
    assert "<|im_end|>" not in answer


@pytest.mark.usefixtures("smollm2_file")
def test_what_it_is_can_be_asked_without_loading_it():
    found = checkpoints.find("smollm2")
    assert found.source["license"] == "apache-2.0"
    assert found.source["quantization"] == "Q4_1"
    assert found.config.num_layers == 30
