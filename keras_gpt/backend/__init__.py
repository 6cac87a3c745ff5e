"""The few functions that differ by backend; each module here has all of them."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_gpt.backend.tensorflow import (
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        has_fused_attention,
        with_dense_gradient,
        write_cache,
    )
elif keras.backend.backend() == "jax":
    from keras_gpt.backend.jax import (
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        has_fused_attention,
        with_dense_gradient,
        write_cache,
    )
elif keras.backend.backend() == "torch":
    from keras_gpt.backend.torch import (
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        has_fused_attention,
        with_dense_gradient,
        write_cache,
    )
else:

    def __getattr__(name):
        # raised on use, not on import: tokenizers and data need no backend
        raise ImportError(
            "keras_gpt models run on TensorFlow, JAX and PyTorch. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Set it to tensorflow, jax or "
            "torch before Python starts."
        )


__all__ = [
    "bucket",
    "causal_attention",
    "compile_function",
    "default_jit_compile",
    "has_fused_attention",
    "with_dense_gradient",
    "write_cache",
]
