"""Which weight is which: what each format calls the weights of a GPT.

A table has our path on the left and on the right the tensors whose columns, side by
side, are that weight; `{i}` is the number of the block.
"""

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"block_(\d+)/")


@dataclass(frozen=True)
class Names:
    """What one format calls the weights.

    Args:
        table: `{ours: theirs}`.
        transposed: Whether its matrices of linear layers are `(output, input)`; ours
            are `(input, output)`.
        ignored: Regular expression of tensors that hold no weights, such as masks.
    """

    table: dict[str, tuple[str, ...]]
    transposed: bool
    ignored: str = r"(?!)"

    def find(self, path: str) -> list[str]:
        """Names of the tensors that make the weight `path`.

        Raises:
            ValueError: The format has no such weight.
        """
        block = _BLOCK.match(path)
        number = block[1] if block else ""
        template = _BLOCK.sub("block_{i}/", path)
        if template not in self.table:
            raise ValueError(
                f"This format has no place for the weight {path!r}; the model differs "
                "from the models of the family."
            )
        return [name.replace("{i}", number) for name in self.table[template]]

    def is_transposed(self, path: str) -> bool:
        """Whether the tensors of the weight `path` are transposed to ours."""
        return path.endswith("reverse_embeddings") or (
            self.transposed and path.endswith("kernel")
        )

    def ignores(self, name: str) -> bool:
        """Whether a tensor that nothing asked for can be passed over."""
        return re.search(self.ignored, name) is not None


HUGGING_FACE_GPT2 = Names(
    table={
        "embedding/tokens/embeddings": ("wte.weight",),
        "embedding/tokens/reverse_embeddings": ("lm_head.weight",),
        "embedding/positions/embeddings": ("wpe.weight",),
        "block_{i}/attention_norm/gamma": ("h.{i}.ln_1.weight",),
        "block_{i}/attention_norm/beta": ("h.{i}.ln_1.bias",),
        "block_{i}/attention/query_key_value/kernel": ("h.{i}.attn.c_attn.weight",),
        "block_{i}/attention/query_key_value/bias": ("h.{i}.attn.c_attn.bias",),
        "block_{i}/attention/output_projection/kernel": ("h.{i}.attn.c_proj.weight",),
        "block_{i}/attention/output_projection/bias": ("h.{i}.attn.c_proj.bias",),
        "block_{i}/feed_forward_norm/gamma": ("h.{i}.ln_2.weight",),
        "block_{i}/feed_forward_norm/beta": ("h.{i}.ln_2.bias",),
        "block_{i}/feed_forward/up_projection/kernel": ("h.{i}.mlp.c_fc.weight",),
        "block_{i}/feed_forward/up_projection/bias": ("h.{i}.mlp.c_fc.bias",),
        "block_{i}/feed_forward/down_projection/kernel": ("h.{i}.mlp.c_proj.weight",),
        "block_{i}/feed_forward/down_projection/bias": ("h.{i}.mlp.c_proj.bias",),
        "final_norm/gamma": ("ln_f.weight",),
        "final_norm/beta": ("ln_f.bias",),
    },
    transposed=False,
    ignored=r"\.attn\.(masked_)?bias$|^lm_head\.weight$",
)

_LLAMA_BLOCK = "model.layers.{i}."


def _projections(prefix, names, suffix):
    return tuple(f"{prefix}{name}.{suffix}" for name in names)


HUGGING_FACE_LLAMA = Names(
    table={
        "embedding/tokens/embeddings": ("model.embed_tokens.weight",),
        "embedding/tokens/reverse_embeddings": ("lm_head.weight",),
        "block_{i}/attention_norm/scale": (_LLAMA_BLOCK + "input_layernorm.weight",),
        **{
            f"block_{{i}}/attention/query_key_value/{ours}": _projections(
                _LLAMA_BLOCK + "self_attn.", ("q_proj", "k_proj", "v_proj"), theirs
            )
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        },
        **{
            f"block_{{i}}/attention/output_projection/{ours}": (
                f"{_LLAMA_BLOCK}self_attn.o_proj.{theirs}",
            )
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        },
        "block_{i}/attention/query_norm/scale": (
            _LLAMA_BLOCK + "self_attn.q_norm.weight",
        ),
        "block_{i}/attention/key_norm/scale": (
            _LLAMA_BLOCK + "self_attn.k_norm.weight",
        ),
        "block_{i}/feed_forward_norm/scale": (
            _LLAMA_BLOCK + "post_attention_layernorm.weight",
        ),
        **{
            f"block_{{i}}/feed_forward/up_projection/{ours}": _projections(
                _LLAMA_BLOCK + "mlp.", ("gate_proj", "up_proj"), theirs
            )
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        },
        **{
            f"block_{{i}}/feed_forward/down_projection/{ours}": (
                f"{_LLAMA_BLOCK}mlp.down_proj.{theirs}",
            )
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        },
        "final_norm/scale": ("model.norm.weight",),
    },
    transposed=True,
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight$",
)

GGUF_GPT2 = Names(
    table={
        "embedding/tokens/embeddings": ("token_embd.weight",),
        "embedding/tokens/reverse_embeddings": ("output.weight",),
        "embedding/positions/embeddings": ("position_embd.weight",),
        **{
            f"{ours}/{ours_suffix}": (f"{theirs}.{theirs_suffix}",)
            for ours, theirs in (
                ("block_{i}/attention_norm", "blk.{i}.attn_norm"),
                ("block_{i}/feed_forward_norm", "blk.{i}.ffn_norm"),
                ("final_norm", "output_norm"),
            )
            for ours_suffix, theirs_suffix in (("gamma", "weight"), ("beta", "bias"))
        },
        **{
            f"block_{{i}}/{ours}/{ours_suffix}": (
                f"blk.{{i}}.{theirs}.{theirs_suffix}",
            )
            for ours, theirs in (
                ("attention/query_key_value", "attn_qkv"),
                ("attention/output_projection", "attn_output"),
                ("feed_forward/up_projection", "ffn_up"),
                ("feed_forward/down_projection", "ffn_down"),
            )
            for ours_suffix, theirs_suffix in (("kernel", "weight"), ("bias", "bias"))
        },
    },
    transposed=True,
    ignored=r"^output\.weight$",
)

GGUF_LLAMA = Names(
    table={
        "embedding/tokens/embeddings": ("token_embd.weight",),
        "embedding/tokens/reverse_embeddings": ("output.weight",),
        "block_{i}/attention_norm/scale": ("blk.{i}.attn_norm.weight",),
        "block_{i}/attention/query_norm/scale": ("blk.{i}.attn_q_norm.weight",),
        "block_{i}/attention/key_norm/scale": ("blk.{i}.attn_k_norm.weight",),
        "block_{i}/feed_forward_norm/scale": ("blk.{i}.ffn_norm.weight",),
        **{
            f"block_{{i}}/{ours}/{ours_suffix}": _projections(
                "blk.{i}.", theirs, theirs_suffix
            )
            for ours, theirs in (
                ("attention/query_key_value", ("attn_q", "attn_k", "attn_v")),
                ("attention/output_projection", ("attn_output",)),
                ("feed_forward/up_projection", ("ffn_gate", "ffn_up")),
                ("feed_forward/down_projection", ("ffn_down",)),
            )
            for ours_suffix, theirs_suffix in (("kernel", "weight"), ("bias", "bias"))
        },
        "final_norm/scale": ("output_norm.weight",),
    },
    transposed=True,
    ignored=r"^(output|rope_freqs)\.weight$",
)

_HUB_BLOCK = "transformer_layer_{i}/"
_HUB_TABLE = {
    "embedding/tokens/embeddings": ("token_embedding/embeddings",),
    "embedding/tokens/reverse_embeddings": ("token_embedding/reverse_embeddings",),
    **{
        f"block_{{i}}/{ours}/{suffix}": tuple(
            f"{_HUB_BLOCK}{name}/{suffix}" for name in theirs
        )
        for ours, theirs in (
            (
                "attention/query_key_value",
                ("self_attention/query", "self_attention/key", "self_attention/value"),
            ),
            ("attention/output_projection", ("self_attention/attention_output",)),
            ("feed_forward/down_projection", ("feedforward_output_dense",)),
        )
        for suffix in ("kernel", "bias")
    },
}

KERAS_HUB_GPT2 = Names(
    table={
        **_HUB_TABLE,
        "embedding/positions/embeddings": ("position_embedding/embeddings",),
        **{
            f"{ours}/{suffix}": (f"{theirs}/{suffix}",)
            for ours, theirs in (
                ("block_{i}/attention_norm", _HUB_BLOCK + "self_attention_layer_norm"),
                ("block_{i}/feed_forward_norm", _HUB_BLOCK + "feedforward_layer_norm"),
                ("final_norm", "layer_norm"),
            )
            for suffix in ("gamma", "beta")
        },
        **{
            f"block_{{i}}/feed_forward/up_projection/{suffix}": (
                f"{_HUB_BLOCK}feedforward_intermediate_dense/{suffix}",
            )
            for suffix in ("kernel", "bias")
        },
    },
    transposed=False,
)

KERAS_HUB_LLAMA = Names(
    table={
        **_HUB_TABLE,
        **{
            f"{ours}/scale": (f"{theirs}/scale",)
            for ours, theirs in (
                ("block_{i}/attention_norm", _HUB_BLOCK + "self_attention_layernorm"),
                (
                    "block_{i}/attention/query_norm",
                    _HUB_BLOCK + "self_attention/query_dense_layernorm",
                ),
                (
                    "block_{i}/attention/key_norm",
                    _HUB_BLOCK + "self_attention/key_dense_layernorm",
                ),
                ("block_{i}/feed_forward_norm", _HUB_BLOCK + "feedforward_layernorm"),
                ("final_norm", "sequence_output_layernorm"),
            )
        },
        "block_{i}/feed_forward/up_projection/kernel": (
            _HUB_BLOCK + "feedforward_gate_dense/kernel",
            _HUB_BLOCK + "feedforward_intermediate_dense/kernel",
        ),
    },
    transposed=False,
)
