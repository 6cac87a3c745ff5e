"""`GPTConfig`: every choice that defines a GPT's architecture, checked on creation."""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

PositionEmbedding = Literal["learned", "sinusoidal", "rotary", "none"]
Normalization = Literal["layer_norm", "rms_norm"]
Activation = Literal["gelu", "gelu_tanh", "relu_squared", "swiglu"]

POSITION_EMBEDDINGS = ("learned", "sinusoidal", "rotary", "none")
NORMALIZATIONS = ("layer_norm", "rms_norm")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu_squared", "swiglu")

_LLAMA = {
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
}
# What a small GPT learns fast with (benchmarks/recipe.py): Qwen3's mathematics
FAST_ARCHITECTURE = {**_LLAMA, "qk_norm": True}
_SMOLLM2 = {
    **_LLAMA,
    "vocab_size": 49152,
    "context_length": 8192,
    "rotary_base": 100000.0,
}


def _sizes(embedding_dimension, num_layers, num_heads, **others):
    return {
        "embedding_dimension": embedding_dimension,
        "num_layers": num_layers,
        "num_heads": num_heads,
        **others,
    }


def _gpt2(*sizes):
    return _sizes(*sizes, vocab_size=50257, context_length=1024, activation="gelu_tanh")


def _characters(*sizes, **others):
    return _sizes(*sizes, vocab_size=65, use_bias=False, **others)


PRESETS: dict[str, dict[str, Any]] = {
    # nanoGPT's two Tiny Shakespeare configurations, characters
    "char_cpu": _characters(128, 4, 4, context_length=64),
    "char_gpu": _characters(384, 6, 6, context_length=256, dropout_rate=0.2),
    # what `keras-gpt train` trains unless told otherwise
    "quickstart": _sizes(192, 4, 6, vocab_size=2048, context_length=128, **_LLAMA),
    # https://openai.com/research/better-language-models, Table 2 of the paper
    "gpt2": _gpt2(768, 12, 12),
    "gpt2_medium": _gpt2(1024, 24, 16),
    "gpt2_large": _gpt2(1280, 36, 20),
    "gpt2_xl": _gpt2(1600, 48, 25),
    # https://huggingface.co/blog/smollm, SmolLM2's config.json files
    "smollm2_135m": _sizes(
        576, 30, 9, num_kv_heads=3, feed_forward_dimension=1536, **_SMOLLM2
    ),
    "smollm2_360m": _sizes(
        960, 32, 15, num_kv_heads=5, feed_forward_dimension=2560, **_SMOLLM2
    ),
}


_OPTIONAL = (
    "num_kv_heads",
    "attention_dimension",
    "feed_forward_dimension",
    "sliding_window",
)
_POSITIVE_INTEGERS = (
    "vocab_size",
    "context_length",
    "embedding_dimension",
    "num_layers",
    "num_heads",
    *_OPTIONAL,
)


def _names_the_nearest(cls):
    """A dataclass whose constructor says which field is unknown or missing."""
    init = cls.__init__
    fields = dataclasses.fields(cls)
    known = [field.name for field in fields]
    required = [f.name for f in fields if f.default is dataclasses.MISSING]

    @functools.wraps(init)
    def __init__(self, *args, **values):  # noqa: N807
        for name in values:
            if name not in known:
                raise TypeError(
                    f"Unknown field of {cls.__name__}. {suggest('field', name, known)}"
                )
        missing = [f"`{name}`" for name in required if name not in values]
        if missing and not args:
            raise TypeError(
                f"{cls.__name__} needs {', '.join(missing)}. "
                f"Received: {', '.join(values) or 'nothing'}."
            )
        init(self, *args, **values)

    cls.__init__ = __init__
    return cls


@_names_the_nearest
@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture of a GPT.

    Args:
        vocab_size: Number of token ids; ids run from 0 to `vocab_size - 1`.
        context_length: Most tokens that the model sees at once.
        embedding_dimension: Width of the residual stream.
        num_layers: Number of transformer blocks.
        num_heads: Number of query heads; must divide `attention_dimension`.
        num_kv_heads: Number of key and value heads (grouped-query attention);
            must divide `num_heads`. Defaults to `num_heads`.
        attention_dimension: Width of all query heads together. Defaults to
            `embedding_dimension`.
        feed_forward_dimension: Hidden width of the feed-forward network.
            Defaults to 4 times `embedding_dimension`, or, for `"swiglu"` with
            its third matrix, two thirds of that rounded up to a multiple of 32.
        dropout_rate: Fraction dropped from embeddings, attention weights and
            both residual branches while training, in `[0, 1)`. Defaults to 0.
        position_embedding: `"learned"` (GPT-2), `"sinusoidal"` (the original
            Transformer), `"rotary"` (Llama) or `"none"`.
        rotary_base: Base of the rotary frequencies. Defaults to 10,000.
        rotary_scaling: How rotary frequencies were slowed down for a longer context:
            `{"type": "linear", "factor": 4.0}`, or Llama 3.1's way, which leaves the
            fast ones alone: `{"type": "llama3", "factor": 8.0,
            "low_frequency_factor": 1.0, "high_frequency_factor": 4.0,
            "original_context_length": 8192}`. Defaults to `None`, not at all.
        normalization: `"layer_norm"` (GPT-2) or `"rms_norm"` (Llama).
        norm_epsilon: Added to the variance in each normalization.
        activation: `"gelu"`, `"gelu_tanh"` (GPT-2), `"relu_squared"`, or
            `"swiglu"` (Llama: a SiLU gate on a third matrix).
        use_bias: Whether projections (and layer norms) have biases.
        query_key_value_bias: Whether query, key and value have biases (Qwen2).
            Defaults to `use_bias`.
        tie_embeddings: Whether the output projection is the transposed token
            embedding.
        qk_norm: Whether each query and key head is RMS-normalized (Qwen3).
        sliding_window: Each token sees itself and the `sliding_window - 1`
            before it (Mistral). Defaults to `None`, all of them.
        document_separator_id: Token id that ends each document of a packed
            sequence. When set, no token sees another document and positions
            restart after each separator. Defaults to `None`.

    Raises:
        TypeError: An argument is unknown (the nearest is named) or missing.
        ValueError: An argument is out of range, or two don't go together.

    Example:

    >>> from keras_gpt import GPTConfig
    >>> config = GPTConfig(vocab_size=65, context_length=64, embedding_dimension=128,
    ...                    num_layers=4, num_heads=4)
    >>> config.head_dimension
    32
    >>> GPTConfig.from_preset("gpt2", dropout_rate=0.1).num_layers
    12
    """

    vocab_size: int
    context_length: int
    embedding_dimension: int
    num_layers: int
    num_heads: int
    num_kv_heads: int | None = None
    attention_dimension: int | None = None
    feed_forward_dimension: int | None = None
    dropout_rate: float = 0.0
    position_embedding: PositionEmbedding = "learned"
    rotary_base: float = 10000.0
    rotary_scaling: dict[str, Any] | None = None
    normalization: Normalization = "layer_norm"
    norm_epsilon: float = 1e-5
    activation: Activation = "gelu"
    use_bias: bool = True
    query_key_value_bias: bool | None = None
    tie_embeddings: bool = True
    qk_norm: bool = False
    sliding_window: int | None = None
    document_separator_id: int | None = None

    def __post_init__(self):
        for name in _POSITIVE_INTEGERS:
            value, is_optional = getattr(self, name), name in _OPTIONAL
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if not ((is_integer and value > 0) or (is_optional and value is None)):
                raise ValueError(
                    f"`{name}` must be a positive integer. Received: {name}={value!r}."
                )
        check_choice("position_embedding", self.position_embedding, POSITION_EMBEDDINGS)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_dropout_rate(self.dropout_rate)
        for name in ("rotary_base", "norm_epsilon"):
            value = getattr(self, name)
            if not (isinstance(value, Real) and 0 < value < math.inf):
                raise ValueError(
                    f"`{name}` must be above 0. Received: {name}={getattr(self, name)}."
                )
        check_heads(
            self.embedding_dimension,
            self.num_heads,
            self.num_kv_heads,
            self.attention_dimension,
        )
        if self.position_embedding == "rotary" and self.head_dimension % 2:
            name = "attention" if self.attention_dimension else "embedding"
            raise ValueError(
                f"Rotary positions rotate pairs, so `{name}_dimension / num_heads` "
                f"must be even. Received: {name}_dimension="
                f"{getattr(self, f'{name}_dimension')}, num_heads={self.num_heads}."
            )
        check_rotary_scaling(self.rotary_scaling)
        separator = self.document_separator_id
        if separator is not None and not (
            isinstance(separator, int) and 0 <= separator < self.vocab_size
        ):
            raise ValueError(
                "`document_separator_id` must be a token id from 0 to "
                f"{self.vocab_size - 1}. Received: document_separator_id={separator}."
            )

    @property
    def head_dimension(self) -> int:
        """Width of one attention head."""
        return (self.attention_dimension or self.embedding_dimension) // self.num_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def hidden_dimension(self) -> int:
        """Hidden width of the feed-forward network."""
        return self.feed_forward_dimension or default_feed_forward_dimension(
            self.embedding_dimension, self.activation
        )

    @property
    def has_query_key_value_bias(self) -> bool:
        """Whether query, key and value have biases."""
        bias = self.query_key_value_bias
        return self.use_bias if bias is None else bias

    def arguments_of(self, layer: type) -> dict[str, Any]:
        """What a layer's constructor takes of this, by the name that both have.

        So an option stands here and in the layer that does it, and nowhere between.
        """
        names = inspect.signature(layer.__init__).parameters
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    @classmethod
    def from_preset(cls, preset: str, **overrides: Any) -> "GPTConfig":
        """Make a configuration from a name in `keras_gpt.PRESETS`.

        Args:
            preset: For example `"gpt2"` or `"smollm2_135m"`.
            **overrides: Fields that replace the preset's.

        Returns:
            A `GPTConfig`.

        Raises:
            ValueError: The preset or a field is unknown (the nearest is named).
        """
        if preset not in PRESETS:
            raise ValueError(f"Unknown preset. {suggest('preset', preset, PRESETS)}")
        return cls.from_dict({**PRESETS[preset], **overrides})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "GPTConfig":
        """Make a configuration from what `to_dict` gave.

        Raises:
            ValueError: A field is unknown (the nearest is named), missing or wrong.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise ValueError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, ready for JSON."""
        return dataclasses.asdict(self)


def default_feed_forward_dimension(embedding_dimension: int, activation: str) -> int:
    """Hidden width that gives the usual parameter count for the activation."""
    if activation == "swiglu":
        return -(-8 * embedding_dimension // 3 // 32) * 32
    return 4 * embedding_dimension


def check_heads(
    embedding_dimension: int,
    num_heads: int,
    num_kv_heads: int | None,
    attention_dimension: int | None = None,
) -> None:
    """Raise `ValueError` unless the heads divide what they must divide."""
    name = "attention_dimension" if attention_dimension else "embedding_dimension"
    _check_divides(
        "num_heads", num_heads, name, attention_dimension or embedding_dimension
    )
    if num_kv_heads is not None:
        _check_divides("num_kv_heads", num_kv_heads, "num_heads", num_heads)


def _check_divides(name, divisor, of_name, of):
    if of % divisor:
        nearest = next(n for n in range(min(divisor, of), 0, -1) if of % n == 0)
        raise ValueError(
            f"`{name}` must divide `{of_name}`. Received: {name}={divisor}, "
            f"{of_name}={of}. Try {name}={nearest}."
        )


ROTARY_SCALINGS = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_frequency_factor",
        "high_frequency_factor",
        "original_context_length",
    ),
}


def check_rotary_scaling(scaling: dict[str, Any] | None) -> None:
    """Raise `ValueError` unless the scaling is `None` or has what its type needs."""
    if scaling is None:
        return
    kind = scaling.get("type") if isinstance(scaling, dict) else scaling
    if kind not in ROTARY_SCALINGS:
        raise ValueError(
            "Unknown type of `rotary_scaling`. "
            f"{suggest('type', kind, ROTARY_SCALINGS)}"
        )
    wanted = ROTARY_SCALINGS[kind]
    if set(scaling) != {"type", *wanted} or not all(
        isinstance(scaling[name], Real) and 0 < scaling[name] < math.inf
        for name in wanted
    ):
        raise ValueError(
            f"`rotary_scaling` of type {kind!r} must have {', '.join(wanted)}, each "
            f"above 0. Received: rotary_scaling={scaling}."
        )
    if kind == "llama3" and not (
        scaling["low_frequency_factor"] < scaling["high_frequency_factor"]
    ):
        raise ValueError(
            "`low_frequency_factor` must be below `high_frequency_factor`. Received: "
            f"rotary_scaling={scaling}."
        )


def check_dropout_rate(dropout_rate: float) -> None:
    """Raise `ValueError` unless the rate is a fraction below 1."""
    if not (isinstance(dropout_rate, Real) and 0 <= dropout_rate < 1):
        raise ValueError(
            "`dropout_rate` must be at least 0 and below 1. Received: "
            f"dropout_rate={dropout_rate}."
        )


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise `ValueError` unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"Unknown `{name}`. {suggest(name, value, choices)}")


# Ours, and what Transformers, KerasHub, nanoGPT, llama.cpp, Ollama and OpenAI say
_ELSEWHERE = """
vocab_size             vocabulary_size n_vocab
context_length         max_position_embeddings n_positions n_ctx block_size
context_length         max_sequence_length sequence_length max_seq_len num_ctx
embedding_dimension    hidden_size hidden_dim n_embd embedding_dim embed_dim d_model dim
num_layers             num_hidden_layers n_layer n_layers depth
num_heads              num_attention_heads num_query_heads n_head n_heads
num_kv_heads           num_key_value_heads n_kv_heads n_kv_head
feed_forward_dimension intermediate_size intermediate_dim n_inner ffn_dim d_ff
dropout_rate           dropout resid_pdrop embd_pdrop attn_pdrop attention_dropout
rotary_base            rope_theta rope_max_wavelength rope_base
rotary_scaling         rope_scaling
norm_epsilon           rms_norm_eps layer_norm_epsilon layer_norm_eps epsilon
activation             hidden_act activation_function
use_bias               bias
query_key_value_bias   attention_bias qkv_bias
tie_embeddings         tie_word_embeddings tie_weights
rotary                 rope rotary_embedding
learned                absolute
rms_norm               rmsnorm rms
layer_norm             layernorm
gelu_tanh              gelu_new gelu_pytorch_tanh gelu_approximate
relu_squared           relu2
swiglu                 silu swish
max_new_tokens         max_length max_tokens num_predict n_predict max_output_tokens
max_new_tokens         max_completion_tokens max_gen_len
temperature            do_sample temp
top_k                  topk
top_p                  topp nucleus
min_p                  minp
repetition_penalty     repeat_penalty
seed                   random_seed random_state
num_beams              beam_size beam_width
num_return_sequences   n num_samples num_sequences
stop                   stop_sequences stop_strings stop_words
stop_ids               eos_token_id stop_token_ids stop
learning_rate          lr max_lr
final_learning_rate    min_lr
steps                  max_steps max_iters total_steps train_steps num_steps
warmup_steps           warmup_iters num_warmup_steps
evaluate_every         eval_interval eval_steps validate_every
accumulation_steps     gradient_accumulation_steps grad_accum
clip_norm              grad_clip max_grad_norm clipnorm
batch_size             per_device_train_batch_size micro_batch_size
epochs                 num_epochs num_train_epochs
output                 output_dir out_dir out
lora_rank              rank r
query_key_value        q_proj k_proj v_proj c_attn
output_projection      o_proj
up_projection          up_proj gate_proj c_fc
down_projection        down_proj c_proj
byte_pair              bpe
sentencepiece          spm unigram
"""
_OURS = {
    theirs: ours
    for ours, *names in map(str.split, _ELSEWHERE.strip().splitlines())
    for theirs in names
}


def our_name(theirs: str) -> str | None:
    """What we call something of another library, if it is known."""
    return _OURS.get(theirs.lower().replace("-", "_"))


def suggest(
    kind: str, value: Any, choices: Iterable[str], others: Iterable[str] = ()
) -> str:
    """Say what came, what was meant by it, and what there is.

    Args:
        kind: Of what there was a choice.
        value: What came.
        choices: What there is.
        others: What might have been meant too, and isn't listed.
    """
    known = [name for name in (*choices, *others) if name != value]
    ours = our_name(str(value))
    meant = [name for name in known if ours and name.split(".")[-1] == ours]
    meant += difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f" Did you mean {meant[0]!r}?" if meant else ""
    return f"Received: {kind}={value!r}.{hint} One of: {', '.join(choices)}."
