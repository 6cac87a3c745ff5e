"""The few functions that differ by backend; each module here has all of them."""

import keras

from keras_gpt.backend import hosts as hosts

if keras.backend.backend() == "tensorflow":
    from keras_gpt.backend import tensorflow as chosen
elif keras.backend.backend() == "jax":
    from keras_gpt.backend import jax as chosen
elif keras.backend.backend() == "torch":
    from keras_gpt.backend import torch as chosen
else:
    chosen = None

if chosen is not None:
    BYTES_PER_LOGIT = chosen.BYTES_PER_LOGIT
    assign = chosen.assign
    bucket = chosen.bucket
    compile_function = chosen.compile_function
    count_kept_bytes = chosen.count_kept_bytes
    default_jit_compile = chosen.default_jit_compile
    device_memory = chosen.device_memory
    dropout = chosen.dropout
    fused_attention = chosen.fused_attention
    gelu = chosen.gelu
    in_numpy = chosen.in_numpy
    logsumexp = chosen.logsumexp
    look_up = chosen.look_up
    matmul_int4 = chosen.matmul_int4
    matmul_int8 = chosen.matmul_int8
    multiply = chosen.multiply
    put_row = chosen.put_row
    record_step = chosen.record_step
    rematerialize = chosen.rematerialize
    softmax = chosen.softmax
    sum_over_chunks = chosen.sum_over_chunks
    update_adamw = chosen.update_adamw
    write_cache = chosen.write_cache
    zeros = chosen.zeros
elif keras.backend.backend() == "openvino":  # the backend of an export alone
    from keras_gpt.backend import openvino

    assign = openvino.assign
    fused_attention = openvino.fused_attention
    gelu = openvino.gelu
    multiply = openvino.multiply
    write_cache = openvino.write_cache
    zeros = openvino.zeros


if chosen is None:

    def __getattr__(name):
        # raised on use, not on import: tokenizers and data need no backend
        raise ImportError(
            "keras_gpt models run on TensorFlow, JAX and PyTorch. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}. Set it to tensorflow, jax or "
            "torch before Python starts."
        )
