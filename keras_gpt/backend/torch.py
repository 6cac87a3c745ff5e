"""The backend functions on PyTorch."""

# Axes: b batch, k key-value head, s cache position, h head dimension

import torch


def fused_attention(query, key, value):
    """Causal attention of `(b, n, t, h)` to `(b, k, t, h)` by PyTorch's kernel."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
    )


def default_jit_compile(dtype):
    """Whether `fit` should compile: no, torch.compile takes a minute on a CPU."""
    del dtype
    return False


def bucket(size):
    """The size to pad to: its own, since nothing is compiled."""
    return size


def compile_function(function, variables):
    """Run `function(state, inputs)` without recording gradients."""
    del variables
    return torch.inference_mode()(function)


def with_dense_gradient(variable):
    """The variable itself: the gradient of a look-up is dense on PyTorch."""
    return variable


def write_cache(cache, new, position):
    """Put `new` `(b, k, 1, h)` at each row's `position` `(b,)` of `(b, k, s, h)`."""
    rows = torch.arange(cache.shape[0], device=cache.device)
    cache[rows, :, position] = new[:, :, 0]
    return cache
