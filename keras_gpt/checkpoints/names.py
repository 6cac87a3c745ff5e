"""Which weight is which: what each format calls the weights of a GPT.

A table has our layer on the left and on the right theirs; where there are several, our
weight is theirs side by side. Reading and writing use the same tables.
"""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

from keras_gpt.checkpoints.parts import Part, weight_shapes
from keras_gpt.config import GPTConfig

_BLOCK = re.compile(r"block_(\d+)/")


@dataclass(frozen=True)
class Names:
    """What one format calls the weights.

    Args:
        outside: `{ours: theirs}` of the layers outside the blocks; `output` is an
            output projection that isn't the token embedding.
        block: What a block is called, with `{i}` for its number.
        inside: `{ours: theirs}` of a block's layers, theirs with spaces between.
        transposed: Suffixes of our weights that are transposed to theirs.
        has_our_suffixes: Whether `/kernel`, `/gamma` and so on, as ours are, not
            `.weight` and `.bias`.
        ignored: Regular expression of tensors that hold no weights, such as masks.
    """

    outside: dict[str, str]
    block: str
    inside: dict[str, str]
    transposed: tuple[str, ...] = ("kernel", "reverse_embeddings")
    has_our_suffixes: bool = False
    ignored: str = r"(?!)"

    def parts(self, config: GPTConfig) -> Iterator[Part]:
        """Each tensor of a model, weight by weight."""
        for path, shape, widths in weight_shapes(config):
            suffix = path.rpartition("/")[2]
            is_transposed = suffix in self.transposed
            names = self._find(path)
            widths = widths if len(names) > 1 else shape[-1:]
            start = 0
            for name, width in zip(names, widths, strict=True):
                part_shape = (*shape[:-1], width)
                yield Part(
                    name,
                    path,
                    slice(start, start + width),
                    part_shape[::-1] if is_transposed else part_shape,
                    is_transposed,
                )
                start += width

    def ignores(self, name: str) -> bool:
        """Whether a tensor that nothing asked for can be passed over."""
        return re.search(self.ignored, name) is not None

    def _find(self, path):
        """Names of the tensors that make the weight `path`."""
        layer, _, suffix = path.rpartition("/")
        if suffix == "reverse_embeddings":
            layer = "output"
        block = _BLOCK.match(layer)
        table = self.inside if block else self.outside
        prefix = self.block.replace("{i}", block[1]) if block else ""
        theirs = table[_BLOCK.sub("", layer)]
        ending = ".bias" if suffix in ("bias", "beta") else ".weight"
        if self.has_our_suffixes:
            ending = f"/{suffix}"
        return [prefix + name + ending for name in theirs.split()]


HUGGING_FACE_GPT2 = Names(
    outside={
        "embedding/tokens": "transformer.wte",
        "embedding/positions": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    block="transformer.h.{i}.",
    inside={
        "attention_norm": "ln_1",
        "attention/query_key_value": "attn.c_attn",
        "attention/output_projection": "attn.c_proj",
        "feed_forward_norm": "ln_2",
        "feed_forward/up_projection": "mlp.c_fc",
        "feed_forward/down_projection": "mlp.c_proj",
    },
    transposed=("reverse_embeddings",),
    ignored=r"\.attn\.(masked_)?bias$|^lm_head\.weight$",
)

HUGGING_FACE_LLAMA = Names(
    outside={
        "embedding/tokens": "model.embed_tokens",
        "final_norm": "model.norm",
        "output": "lm_head",
    },
    block="model.layers.{i}.",
    inside={
        "attention_norm": "input_layernorm",
        "attention/query_key_value": (
            "self_attn.q_proj self_attn.k_proj self_attn.v_proj"
        ),
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "attention/output_projection": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward/up_projection": "mlp.gate_proj mlp.up_proj",
        "feed_forward/down_projection": "mlp.down_proj",
    },
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight$",
)

GGUF_GPT2 = Names(
    outside={
        "embedding/tokens": "token_embd",
        "embedding/positions": "position_embd",
        "final_norm": "output_norm",
        "output": "output",
    },
    block="blk.{i}.",
    inside={
        "attention_norm": "attn_norm",
        "attention/query_key_value": "attn_qkv",
        "attention/output_projection": "attn_output",
        "feed_forward_norm": "ffn_norm",
        "feed_forward/up_projection": "ffn_up",
        "feed_forward/down_projection": "ffn_down",
    },
    ignored=r"^(output|rope_freqs)\.weight$",
)

GGUF_LLAMA = dataclasses.replace(
    GGUF_GPT2,
    inside={
        **GGUF_GPT2.inside,
        "attention/query_key_value": "attn_q attn_k attn_v",
        "attention/query_norm": "attn_q_norm",
        "attention/key_norm": "attn_k_norm",
        "feed_forward/up_projection": "ffn_gate ffn_up",
    },
)

KERAS_HUB_GPT2 = Names(
    outside={
        "embedding/tokens": "token_embedding",
        "embedding/positions": "position_embedding",
        "final_norm": "layer_norm",
        "output": "token_embedding",
    },
    block="transformer_layer_{i}/",
    inside={
        "attention_norm": "self_attention_layer_norm",
        "attention/query_key_value": (
            "self_attention/query self_attention/key self_attention/value"
        ),
        "attention/output_projection": "self_attention/attention_output",
        "feed_forward_norm": "feedforward_layer_norm",
        "feed_forward/up_projection": "feedforward_intermediate_dense",
        "feed_forward/down_projection": "feedforward_output_dense",
    },
    transposed=(),
    has_our_suffixes=True,
)

KERAS_HUB_LLAMA = dataclasses.replace(
    KERAS_HUB_GPT2,
    outside={**KERAS_HUB_GPT2.outside, "final_norm": "sequence_output_layernorm"},
    inside={
        **KERAS_HUB_GPT2.inside,
        "attention_norm": "self_attention_layernorm",
        "attention/query_norm": "self_attention/query_dense_layernorm",
        "attention/key_norm": "self_attention/key_dense_layernorm",
        "feed_forward_norm": "feedforward_layernorm",
        "feed_forward/up_projection": (
            "feedforward_gate_dense feedforward_intermediate_dense"
        ),
    },
)
