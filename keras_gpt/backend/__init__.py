"""The few functions that differ by backend; each module here has all of them."""

import keras

if keras.backend.backend() == "tensorflow":
    from keras_gpt.backend.tensorflow import (
        FUSED_ATTENTION,
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        write_cache,
    )
elif keras.backend.backend() == "jax":
    from keras_gpt.backend.jax import (
        FUSED_ATTENTION,
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        write_cache,
    )
elif keras.backend.backend() == "torch":
    from keras_gpt.backend.torch import (
        FUSED_ATTENTION,
        bucket,
        causal_attention,
        compile_function,
        default_jit_compile,
        write_cache,
    )
else:
    raise ImportError(
        "keras_gpt runs on TensorFlow, JAX and PyTorch. Received: "
        f"KERAS_BACKEND={keras.backend.backend()}. Set it to one of tensorflow, jax, "
        "torch before Python starts."
    )

__all__ = [
    "FUSED_ATTENTION",
    "bucket",
    "causal_attention",
    "compile_function",
    "default_jit_compile",
    "write_cache",
]
