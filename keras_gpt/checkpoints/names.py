"""Which is which: what each format calls the weights and the settings of a GPT.

A table has our layer on the left and what it is called elsewhere to the right; where
there are several, as in `{q,k,v}_proj`, our weight is theirs side by side. Reading and
writing use the same tables.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from keras_gpt.checkpoints.parts import Part, weight_shapes
from keras_gpt.config import GPTConfig

# Ours, Hugging Face's GPT-2 and Llama, and GGUF's
_TABLE = """
tokens            transformer.wte  model.embed_tokens       token_embd    token_embd
positions         transformer.wpe  -                        position_embd -
final_norm        transformer.ln_f model.norm               output_norm   output_norm
output            lm_head          lm_head                  output        output
attention_norm    ln_1             input_layernorm          attn_norm     attn_norm
query_key_value   attn.c_attn      self_attn.{q,k,v}_proj   attn_qkv      attn_{q,k,v}
query_norm        -                self_attn.q_norm         -             attn_q_norm
key_norm          -                self_attn.k_norm         -             attn_k_norm
output_projection attn.c_proj      self_attn.o_proj         attn_output   attn_output
feed_forward_norm ln_2             post_attention_layernorm ffn_norm      ffn_norm
up_projection     mlp.c_fc         mlp.{gate,up}_proj       ffn_up        ffn_{gate,up}
down_projection   mlp.c_proj       mlp.down_proj            ffn_down      ffn_down
"""
# Ours, KerasHub's GPT-2 and Llama
_KERAS_HUB_TABLE = """
tokens            token_embedding                  token_embedding
positions         position_embedding               -
final_norm        layer_norm                       sequence_output_layernorm
output            token_embedding                  token_embedding
attention_norm    self_attention_layer_norm        self_attention_layernorm
query_key_value   self_attention/{query,key,value} self_attention/{query,key,value}
query_norm        -                                self_attention/query_dense_layernorm
key_norm          -                                self_attention/key_dense_layernorm
output_projection self_attention/attention_output  self_attention/attention_output
feed_forward_norm feedforward_layer_norm           feedforward_layernorm
up_projection     feedforward_intermediate_dense   feedforward_{gate,intermediate}_dense
down_projection   feedforward_output_dense         feedforward_output_dense
"""
# The settings of `GPTConfig`, Hugging Face's GPT-2 and Llama, and GGUF
_SETTINGS = """
vocab_size             vocab_size          vocab_size              -
context_length         n_positions         max_position_embeddings context_length
embedding_dimension    n_embd              hidden_size             embedding_length
num_layers             n_layer             num_hidden_layers       block_count
num_heads              n_head              num_attention_heads     attention.head_count
num_kv_heads           -                   num_key_value_heads     -
feed_forward_dimension n_inner             intermediate_size       feed_forward_length
norm_epsilon           layer_norm_epsilon  rms_norm_eps            -
tie_embeddings         tie_word_embeddings tie_word_embeddings     -
"""
# Those of KerasHub's GPT-2 and Llama
_KERAS_HUB_SETTINGS = """
vocab_size             vocabulary_size     vocabulary_size
context_length         max_sequence_length -
embedding_dimension    hidden_dim          hidden_dim
num_layers             num_layers          num_layers
num_heads              num_heads           num_query_heads
num_kv_heads           -                   num_key_value_heads
feed_forward_dimension intermediate_dim    intermediate_dim
rotary_base            -                   rope_max_wavelength
norm_epsilon           -                   layer_norm_epsilon
dropout_rate           dropout             dropout
"""
_BLOCK = re.compile(r"block_(\d+)/")


@dataclass(frozen=True)
class Names:
    """What one format calls the weights and the settings.

    Args:
        layers: `{ours: theirs}`; `output` is an output projection that isn't the token
            embedding.
        settings: `{ours: theirs}` of the settings that are the same thing.
        block: What a block is called, with `{i}` for its number.
        transposed: Suffixes of our weights that are transposed to theirs.
        has_our_suffixes: Whether `/kernel`, `/gamma` and so on, as ours are, not
            `.weight` and `.bias`.
        ignored: Regular expression of tensors that hold no weights, such as masks.
    """

    layers: dict[str, str]
    settings: dict[str, str]
    block: str
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
        *_, layer, suffix = path.split("/")
        if suffix == "reverse_embeddings":
            layer = "output"
        block = _BLOCK.match(path)
        prefix = self.block.replace("{i}", block[1]) if block else ""
        ending = ".bias" if suffix in ("bias", "beta") else ".weight"
        if self.has_our_suffixes:
            ending = f"/{suffix}"
        return [prefix + name + ending for name in _spread(self.layers[layer])]


def _column(table, number):
    """`{ours: theirs}` of a table's column."""
    rows = [line.split() for line in table.strip().splitlines()]
    return {row[0]: row[number] for row in rows if row[number] != "-"}


def _spread(name):
    """`["q_proj", "k_proj"]` for `{q,k}_proj`."""
    start, _, rest = name.partition("{")
    choices, _, end = rest.partition("}")
    return [start + choice + end for choice in choices.split(",")]


HUGGING_FACE_GPT2 = Names(
    _column(_TABLE, 1),
    _column(_SETTINGS, 1),
    block="transformer.h.{i}.",
    transposed=("reverse_embeddings",),
    ignored=r"\.attn\.(masked_)?bias$|^lm_head\.weight$",
)
HUGGING_FACE_LLAMA = Names(
    _column(_TABLE, 2),
    _column(_SETTINGS, 2),
    block="model.layers.{i}.",
    ignored=r"rotary_emb\.inv_freq$|^lm_head\.weight$",
)
GGUF_GPT2, GGUF_LLAMA = (
    Names(
        _column(_TABLE, number),
        _column(_SETTINGS, 3),
        block="blk.{i}.",
        ignored=r"^(output|rope_freqs)\.weight$",
    )
    for number in (3, 4)
)
KERAS_HUB_GPT2, KERAS_HUB_LLAMA = (
    Names(
        _column(_KERAS_HUB_TABLE, number),
        _column(_KERAS_HUB_SETTINGS, number),
        block="transformer_layer_{i}/",
        transposed=(),
        has_our_suffixes=True,
    )
    for number in (1, 2)
)
