"""Training on several devices: how batches and weights are spread over them."""

import math

import keras
from keras import distribution

# Along which axis of the mesh each axis of a matrix is cut, by the end of its path.
# "model" cuts what follows from a token into parts that are added up once a block.
LAYOUTS = {
    r".*tokens/embeddings": ("fsdp", "model"),
    r".*tokens/reverse_embeddings": ("model", "fsdp"),
    r".*positions/embeddings": ("fsdp", "model"),
    r".*(query_key_value|up_projection)/kernel": ("fsdp", "model"),
    r".*(output_projection|down_projection)/kernel": ("model", "fsdp"),
    # of adapters
    r".*(query_key_value|up_projection)/down": ("fsdp", None),
    r".*(query_key_value|up_projection)/up": (None, "model"),
    r".*(output_projection|down_projection)/down": ("model", None),
    r".*(output_projection|down_projection)/up": (None, "fsdp"),
}
AXES = ("data", "fsdp", "model")


def make_distribution(devices: int | str = "all") -> distribution.ModelParallel:
    """How a GPT is spread over devices, for `keras.distribution.set_distribution`.

    Set it before the model is made or loaded. `fit`, `evaluate` and `generate` then
    compute what they do on one device; optimizer state lies where its weights lie.

    Args:
        devices: `"all"` or a number: each takes a part of every batch. Or how many
            along each axis: `"fsdp:4"` cuts the weights and the state of the optimizer
            too, each device holding a quarter; `"data:2,model:2"` cuts the batch in two
            and the matrices, with what is computed of them, in two.

    Returns:
        A `keras.distribution.ModelParallel`, whose `layout_map` has `LAYOUTS`.

    Raises:
        ValueError: The backend isn't JAX, there are fewer devices, or an axis is
            unknown.

    References:
        - [Rajbhandari et al., 2019](https://arxiv.org/abs/1910.02054), `fsdp`
        - [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), `model`

    Example:

    ```python
    keras.distribution.set_distribution(
        keras_gpt.training.make_distribution("fsdp:4")
    )
    model = keras_gpt.GPT(config)
    ```
    """
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Several devices need JAX. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}, devices={devices!r}. Set "
            "KERAS_BACKEND=jax before Python starts."
        )
    found = distribution.list_devices()
    sizes = _read_sizes(devices, len(found))
    count = math.prod(sizes.values())
    if count > len(found):
        raise ValueError(
            f"`devices` asks for {count} where there are {len(found)}. Received: "
            f"{devices!r}. (To try it on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={count}.)"
        )
    mesh = distribution.DeviceMesh(tuple(sizes.values()), tuple(sizes), found[:count])
    layout_map = distribution.LayoutMap(mesh)
    for path, axes in LAYOUTS.items():
        layout_map[path] = tuple(axis if axis in sizes else None for axis in axes)
    return _Spread(
        layout_map=layout_map,
        batch_dim_name=next(iter(sizes)),
        auto_shard_dataset=False,  # of several hosts each loads its share
    )


def _read_sizes(devices, found):
    """Devices along each axis, that of the batch first."""
    sizes = {}
    for part in str(devices).replace(" ", "").split(","):
        name, _, count = part.rpartition(":")
        name = name or "data"
        if count == "all" and not sizes:
            count = found
        if name not in AXES or name in sizes or not str(count).isdigit():
            sizes = {}
            break
        sizes[name] = int(count)
    if not sizes or not all(sizes.values()) or {"data", "fsdp"} <= set(sizes):
        raise ValueError(
            "`devices` must be 'all', a number, or how many along data or fsdp, and "
            f"model, such as 4, 'fsdp:4' or 'data:2,model:2'. Received: {devices!r}."
        )
    if not {"data", "fsdp"} & set(sizes):
        sizes["data"] = 1
    return dict(sorted(sizes.items()))


class _Spread(distribution.ModelParallel):
    """Lets an axis that doesn't divide a side of a matrix cut another, or none."""

    def get_variable_layout(self, variable):
        wanted = super().get_variable_layout(variable)
        mesh, sides = wanted.device_mesh, range(len(variable.shape))
        sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))
        axes = [None] * len(variable.shape)
        for i, axis in enumerate(wanted.axes):
            free = (j for j in sides if axes[j] is None and wanted.axes[j] is None)
            for j in (i, *free) if axis else ():
                if variable.shape[j] % sizes[axis] == 0:
                    axes[j] = axis
                    break
        return distribution.TensorLayout(axes, mesh)
