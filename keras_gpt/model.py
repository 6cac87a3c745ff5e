"""`GPT`: the layers composed into a functional Keras model."""

# Axes: b batch, t position, e embedding, v vocabulary

import functools
import gc
import math

import keras
import numpy as np
from keras import ops

from keras_gpt import backend
from keras_gpt.config import GPTConfig
from keras_gpt.fit_inputs import CheckedModel
from keras_gpt.layers import (
    CausalSelfAttention,
    DocumentPositions,
    FeedForward,
    RotaryAngles,
    TokenAndPositionEmbedding,
    TransformerBlock,
)
from keras_gpt.layers.adapter import Adapters, RowAdapters
from keras_gpt.layers.base import Normal, Zeros, make_normalization
from keras_gpt.layers.linear import GROUP_SIZE, Linear
from keras_gpt.layers.logits import Logits
from keras_gpt.loss import (
    TokenCrossentropy,
    check_takes_logits,
    making_logits,
)
from keras_gpt.token_ids import check_length, check_token_ids


@keras.saving.register_keras_serializable("keras_gpt")
class GPT(CheckedModel):
    """A GPT: token ids in, logits of each next token out.

    Args:
        config: The architecture, a `GPTConfig`.
        dtype: A dtype or dtype policy, for example `"mixed_bfloat16"`. Defaults to
            Keras's global one.
        name: Name of the model. Defaults to `"gpt"`.
        initial_weights: Whether weights are drawn. `False` leaves zeros, for weights
            that are about to be loaded. Defaults to `True`.

    Call arguments:
        token_ids: Integers `(batch, sequence)`, each from 0 to `vocab_size - 1`.

    Returns:
        Logits, float32 `(batch, sequence, vocab_size)`.

    Raises:
        ValueError: A sequence is longer than `context_length`, or token ids given as
            NumPy or Python numbers are out of range.

    References:
        - [Radford et al., 2019](https://openai.com/research/better-language-models)
        - [Touvron et al., 2023](https://arxiv.org/abs/2302.13971)

    Example:

    >>> import numpy as np
    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=2, num_heads=4)
    >>> model = keras_gpt.GPT(config)
    >>> tuple(model(np.array([[1, 2, 3]])).shape)
    (1, 3, 65)
    >>> model.compile()
    >>> ids = np.random.randint(65, size=(4, 9))
    >>> history = model.fit(ids[:, :-1], ids[:, 1:], verbose=0)
    """

    def __init__(
        self,
        config,
        *outputs,
        dtype=None,
        name="gpt",
        initial_weights=True,
        **kwargs,
    ):
        quantization = None
        if outputs:  # of `keras.models.clone_model`, with the inputs in `config`
            cloned = keras.Model(config, *outputs).get_layer("logits").describe_model()
            config, dtype, quantization = _read_config(cloned)
        if not isinstance(config, GPTConfig):
            raise ValueError(
                f"`config` must be a GPTConfig. Received: {type(config).__name__}."
            )
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        # each block adds twice to the residual stream: keep its variance
        stddev = 0.02 / (2 * config.num_layers) ** 0.5

        def make(layer, *parts, name, **initializers):
            if not initial_weights:
                initializers = dict.fromkeys(initializers, Zeros())
            arguments = {**config.arguments_of(layer), **initializers}
            return layer(*parts, **arguments, dtype=policy, name=name)

        def make_block(i):
            initializers = {
                "kernel_initializer": Normal(),
                "residual_initializer": Normal(stddev),
            }
            return make(
                TransformerBlock,
                make(CausalSelfAttention, name="attention", **initializers),
                make(FeedForward, name="feed_forward", **initializers),
                name=f"block_{i}",
            )

        embedding = make(
            TokenAndPositionEmbedding, name="embedding", embeddings_initializer=Normal()
        )
        blocks = [make_block(i) for i in range(config.num_layers)]
        final_norm = make_normalization(
            config.normalization,
            config.norm_epsilon,
            config.use_bias,
            policy,
            "final_norm",
        )
        documents = rotary = None
        if config.document_separator_id is not None:
            documents = make(DocumentPositions, name="documents")
        if config.position_embedding == "rotary":
            rotary = make(RotaryAngles, name="rotary")

        token_ids = keras.Input((None,), dtype="int32", name="token_ids")
        segment_ids, positions = documents(token_ids) if documents else (None, None)
        angles = rotary(token_ids, positions) if rotary else None
        x = embedding(token_ids, positions)  # (b, t, e)
        for block in blocks:
            x = block(x, angles, segment_ids)
        logits = make(Logits, embedding, self.get_config, name="logits")
        outputs = logits(final_norm(x))

        super().__init__(inputs=token_ids, outputs=outputs, name=name, **kwargs)
        self.config = config
        self.documents, self.rotary = documents, rotary
        self.embedding, self.blocks = embedding, blocks
        self.final_norm, self.logits = final_norm, logits
        self.adapters = Adapters(name="adapters")  # `training.enable_lora` fills it
        # Keras asks the model's own policy whether to scale the loss
        self.dtype_policy = policy
        if quantization is not None:
            self.quantize(quantization)

    def __call__(self, token_ids, *args, **kwargs):
        if isinstance(token_ids, np.ndarray | list | tuple | str):
            token_ids = check_token_ids(token_ids, self.config.vocab_size)
            check_length(token_ids.shape[-1], self.config.context_length)
        return super().__call__(token_ids, *args, **kwargs)

    def compile(
        self, optimizer=None, loss=None, *, jit_compile=None, remat=False, **kwargs
    ):
        """Configure training; without arguments AdamW and sparse cross-entropy.

        Args:
            optimizer: Defaults to AdamW with learning rate 1e-3 and Keras's other
                defaults; `keras_gpt.training.compile_model` knows more.
            loss: Defaults to sparse cross-entropy, averaged over the tokens whose
                sample weight isn't 0.
            jit_compile: Defaults to what is fastest on the backend and device.
            remat: Whether training keeps only the input of each block, and computes
                what is inside a second time for the gradients: less memory, more time.
            **kwargs: Other arguments of `keras.Model.compile`.

        Raises:
            ValueError: The loss would take the model's logits for probabilities.
        """
        check_takes_logits(loss)
        optimizer = optimizer or keras.optimizers.AdamW(1e-3)
        loss = loss or TokenCrossentropy()
        if jit_compile is None:
            jit_compile = backend.default_jit_compile(self.compute_dtype)
        for block in self.blocks:
            block.remat = remat
        super().compile(optimizer, loss, jit_compile=jit_compile, **kwargs)

    def compile_from_config(self, config):
        """Compile as the saved model was, but as this backend does it best."""
        config = keras.saving.deserialize_keras_object(config)
        config["jit_compile"] = backend.default_jit_compile(self.compute_dtype)
        super().compile(**config)
        self.optimizer.build(self.trainable_variables)

    def train_step(self, *state_and_batch):
        with self._leaving_logits_to_loss(state_and_batch[-1], is_training=True):
            return super().train_step(*state_and_batch)

    def test_step(self, *state_and_batch):
        with self._leaving_logits_to_loss(state_and_batch[-1], is_training=False):
            return super().test_step(*state_and_batch)

    def _leaving_logits_to_loss(self, batch, is_training):
        """Have our loss make the logits, if they are many and nothing else reads them.

        A subclass may, in a `compute_loss` of its own.
        """
        is_ours = type(self) is GPT and isinstance(self.loss, TokenCrossentropy)
        shape = keras.tree.flatten(batch)[0].shape  # of the token ids
        if (
            is_ours
            and len(self.metrics) == 1
            and self.loss.can_make_logits(shape, self.config)
        ):
            return making_logits(self.logits, is_training)
        return making_logits(None)

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        """Keep the weights of matrices in fewer bits, to generate with less memory.

        Args:
            mode: `"int8"` keeps one scale for each output of a matrix, and each row of
                the embeddings; what is multiplied with them stays as it is. On PyTorch
                on a CPU generation is several times faster. `"int4"` keeps a scale and
                a minimum for each 32 inputs of an output, as GGUF's Q4_1 does; the
                embeddings, and matrices whose inputs 32 doesn't divide, are int8 then.
                Others of `keras.Model` round what is multiplied too.
            config: As of `keras.Model.quantize`; its `block_size` instead of 32.
            filters: As of `keras.Model.quantize`. Defaults to all matrices.
            **kwargs: As of `keras.Model.quantize`.

        Example:

        >>> import keras_gpt
        >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16, num_heads=4,
        ...                              embedding_dimension=32, num_layers=2)
        >>> model = keras_gpt.GPT(config)
        >>> model.quantize("int8")
        >>> model.quantization
        'int8'
        """
        gc.freeze()  # Keras collects garbage after each matrix, which takes far longer
        try:
            if mode == "int4" and filters is None and (config.block_size or -1) > 0:
                self._quantize_groups(config.block_size, **kwargs)
                mode, config = "int8", None
            filters = filters or _is_plain_matrix
            super().quantize(mode, config=config, filters=filters, **kwargs)
        finally:
            gc.unfreeze()

    def _quantize_groups(self, size, **kwargs):
        """Keep the matrices in int4 that have groups of a size."""
        settings = keras.quantizers.Int4QuantizationConfig
        if size == settings().block_size:  # which Keras puts in place of none
            size = GROUP_SIZE
        width = self.config.embedding_dimension
        if width % size:
            raise ValueError(
                f"int4 keeps weights in groups of {size}, which must divide "
                f"`embedding_dimension`. Received: {width}. Choose 'int8'."
            )

        def has_groups(layer):
            is_plain = isinstance(layer, Linear) and _is_plain_matrix(layer)
            return is_plain and layer.kernel.shape[0] % size == 0

        super().quantize(config=settings(block_size=size), filters=has_groups, **kwargs)

    @property
    def quantization(self):
        """How `quantize` keeps the weights, such as `"int8"`, or `None`."""
        return self.blocks[0].feed_forward.up_projection.quantization_mode

    def generate(self, *args, **kwargs):
        """Refuse: a model knows no text. `keras_gpt.generate` continues token ids."""
        raise TypeError(
            "A GPT has no `generate`. keras_gpt.generate(model, ids) continues token "
            "ids, keras_gpt.LanguageModel(model, tokenizer).generate(text) texts."
        )

    def projections(self, targets):
        """The matrices of all blocks that adapters stand beside, by adapters' names.

        Args:
            targets: As of `keras_gpt.training.enable_lora`.
        """
        return {
            f"{block.name}_{target}": getattr(block.attention, target, None)
            or getattr(block.feed_forward, target)
            for block in self.blocks
            for target in targets
        }

    def make_adapters(self, targets, make):
        """Layers to stand beside matrices, which `put_adapters` puts there.

        Args:
            targets: As of `keras_gpt.training.enable_lora`.
            make: Gets `units`, `dtype` and `name`, and returns a layer.
        """
        # float32 variables, and the arithmetic of the model
        dtype = self.compute_dtype
        policy = dtype if dtype == "float32" else f"mixed_{dtype}"
        layers = []
        for name, dense in self.projections(targets).items():
            layers.append(make(dense.units, dtype=policy, name=name))
            layers[-1].build((None, None, dense.kernel.shape[0]))
        return layers

    def put_adapters(self, targets, layers):
        """Put layers of `make_adapters` beside the matrices of these targets."""
        for dense, layer in zip(
            self.projections(targets).values(), layers, strict=True
        ):
            # a method, which Keras doesn't track: the layer is the model's
            dense.adapter = layer.add_to
        self.adapters.layers.extend(layers)
        self.adapters.targets = tuple(targets)

    def take_adapters(self):
        """Take away what `put_adapters` put."""
        for dense in self.projections(self.adapters.targets).values():
            dense.adapter = None
        # emptied, not replaced: Keras goes on tracking what a replaced list held
        self.adapters.layers.clear()
        self.adapters.targets = ()

    def add_adapters(self, ranks, targets):
        """Put adapters beside the matrices, of which each row has its own, or none.

        They are zeros, for values that are about to be loaded.

        Args:
            ranks: The rank of each adapter by its name.
            targets: As of `keras_gpt.training.enable_lora`.
        """
        make = functools.partial(RowAdapters, rank=sum(ranks.values()))
        self.put_adapters(targets, self.make_adapters(targets, make))
        self.adapters.ranks = dict(ranks)

    def prefill(self, token_ids, lengths, cache_length, adapter=None):
        """Read the prompts and keep what `decode` needs.

        Args:
            token_ids: Integers `(batch, sequence)`, padded on the right.
            lengths: Integers `(batch,)`, how many are a prompt's own.
            cache_length: Tokens that the cache has room for.
            adapter: Integers `(batch,)`, as `index` of `Adapters.of_rows`, which the
                cache keeps as `"adapter"`. Defaults to `None`.

        Returns:
            Logits of the token after each prompt, `(batch, vocab_size)`, and the
            cache.
        """

        def run(block, x, angles, segment_ids):
            return block.prefill(x, cache_length, angles, segment_ids)

        x, layers = self._read(token_ids, run, adapter=adapter)
        cache = {"layers": layers}
        if adapter is not None:
            cache["adapter"] = adapter
        if self.documents is not None:
            cache["document_start"] = self.documents.find_start(token_ids, lengths)
        return self._last_logits(x, lengths), cache

    def make_cache_layers(self, batch_size, cache_length):
        """The `"layers"` of a cache into which nothing was read yet.

        Args:
            batch_size: Rows.
            cache_length: Tokens that the cache has room for.
        """
        config = self.config
        shape = batch_size, config.kv_heads, cache_length, config.head_dimension
        dtype = self.compute_dtype
        return tuple(
            (ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in self.blocks
        )

    def decode(self, token_ids, cache, position):
        """Read one more token a row, or several.

        Args:
            token_ids: Integers `(batch,)`, or `(batch, tokens)` for several.
            cache: What `prefill` or `decode` returned; it may be written in place.
            position: Integers `(batch,)`, the place of each row's first token.

        Returns:
            Logits of the next token, `(batch, vocab_size)`, or for several tokens
            after each `(batch, tokens, vocab_size)`; and the new cache. The last of
            them are taken back by reading others in their places, from a cache whose
            `"document_start"`, if it has one, was set back too.
        """
        if len(token_ids.shape) == 1:
            logits, cache = self.decode(token_ids[:, None], cache, position)
            return logits[:, 0], cache
        x, cache = self._read_more(token_ids, cache, position)
        return self.logits(self.final_norm(x)), cache

    def extend(self, token_ids, lengths, cache, position):
        """Read more of each row's text: `decode`, but for one row of logits each.

        Args:
            token_ids: Integers `(batch, tokens)`, padded on the right.
            lengths: Integers `(batch,)`, how many are a row's own.
            cache: As in `decode`. What is padding is written into it, behind the row's
                own, to be replaced.
            position: As in `decode`.

        Returns:
            Logits of the token after each row's last, `(batch, vocab_size)`, and the
            cache.
        """
        x, cache = self._read_more(token_ids, cache, position)
        return self._last_logits(x, lengths), cache

    def _read_more(self, token_ids, cache, position):
        """Read tokens `(b, t)` against the cache; `(b, t, e)` and the new cache."""
        t = token_ids.shape[1]
        position = position[:, None] + ops.arange(t, dtype="int32")  # (b, t)
        cache, start, in_document = dict(cache), None, position
        if self.documents is not None:
            start, cache["document_start"] = self.documents.follow(
                token_ids, position, cache["document_start"]
            )
            in_document = position - start
        if t > 1:  # those beyond the context are there to be taken back
            in_document = ops.minimum(in_document, self.config.context_length - 1)
        layers = iter(cache["layers"])

        def run(block, x, angles, segment_ids):
            return block.decode(x, next(layers), position, angles, start)

        adapter = cache.get("adapter")
        x, cache["layers"] = self._read(token_ids, run, in_document, adapter)
        return x, cache

    def _last_logits(self, x, lengths):
        """Of `(b, t, e)` the logits `(b, v)` after each row's last."""
        last = ops.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)  # (b, 1, e)
        return self.logits(self.final_norm(last))[:, 0]

    def hidden_states(self, token_ids, adapter=None):
        """What the output projection reads, for who needs not all logits at once.

        Args:
            token_ids: Integers `(batch, sequence)`.
            adapter: As of `prefill`.

        Returns:
            `(batch, sequence, embedding)`, of which `model.logits` makes logits.
        """

        def run(block, *inputs):
            return block(*inputs), None

        x, _ = self._read(token_ids, run, adapter=adapter)
        return self.final_norm(x)

    def attention_scores(self, token_ids, adapter=None):
        """Attention weights of every layer, for plots.

        Args:
            token_ids: Integers `(batch, sequence)`.
            adapter: As of `prefill`.

        Returns:
            NumPy float32 `(layers, batch, heads, query, key)`.
        """
        token_ids = check_token_ids(token_ids, self.config.vocab_size)

        def run(block, *inputs):
            x, scores = block(*inputs, return_attention_scores=True)
            scores = ops.cast(ops.stop_gradient(scores), "float32")
            return x, ops.convert_to_numpy(scores)

        token_ids = ops.convert_to_tensor(token_ids)
        return np.stack(self._read(token_ids, run, adapter=adapter)[1])

    def _read(self, token_ids, run, positions=None, adapter=None):
        """Embed, and run each block.

        Args:
            token_ids: Integers `(batch, sequence)`.
            run: From a block, its input, angles and segment ids to its output and an
                extra.
            positions: Of the same shape. Defaults to those in the documents that the
                ids themselves hold.
            adapter: As of `prefill`.

        Returns:
            `(batch, sequence, embedding)` and the extras of all blocks, a tuple.
        """
        segment_ids = angles = None
        if positions is None and self.documents is not None:
            segment_ids, positions = self.documents(token_ids)
        if self.rotary is not None:
            angles = self.rotary(token_ids, positions)
        x = self.embedding(token_ids, positions)
        extras = []
        with self.adapters.of_rows(adapter):
            for block in self.blocks:
                x, extra = run(block, x, angles, segment_ids)
                extras.append(extra)
        return x, tuple(extras)

    def count_flops_per_token(self, sequence_length=None, *, training=True):
        """Floating-point operations for each token, for utilisation figures.

        Args:
            sequence_length: Length of the sequences. Defaults to `context_length`.
            training: Whether to count the backward pass, twice the forward one.

        Returns:
            An integer: 2 for each weight of a matrix product, and 4 for each pair of
            positions and channel in attention, times 3 in training. The causal half
            of attention is counted too, as is usual.

        References:
            - [Chowdhery et al., 2022](https://arxiv.org/abs/2204.02311), appendix B
        """
        config = self.config
        weights = [weight for block in self.blocks for weight in block.weights]
        kernels = sum(math.prod(w.shape) for w in weights if len(w.shape) == 2)
        kernels += config.vocab_size * config.embedding_dimension
        heads_width = config.num_heads * config.head_dimension
        length = sequence_length or config.context_length
        attention = 4 * config.num_layers * heads_width * length
        return (2 * kernels + attention) * (3 if training else 1)

    def get_config(self):
        if self.adapters.layers:
            raise ValueError(
                "A model with adapters isn't saved as a whole. Call "
                "keras_gpt.training.merge_lora(model) first, or save_adapter."
            )
        return {
            "config": self.config.to_dict(),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
            "quantization": self.quantization,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        architecture, dtype, quantization = _read_config(config)
        model = cls(architecture, dtype=dtype, name=config["name"])
        if quantization is not None:
            model.quantize(quantization)
        return model


def _read_config(config):
    """Architecture, dtype policy and quantization in what `get_config` gave."""
    architecture = GPTConfig.from_dict(config["config"])
    dtype = keras.dtype_policies.deserialize(config["dtype"])
    return architecture, dtype, config.get("quantization")


def _is_plain_matrix(layer):
    # the token embedding is met twice: the logits use it too
    is_matrix = isinstance(layer, keras.layers.Dense | keras.layers.Embedding)
    return is_matrix and layer.quantization_mode is None
