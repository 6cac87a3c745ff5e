"""Training on several devices: how batches and weights are spread over them."""

import contextlib
import math
import os
from collections.abc import Iterator

import keras
from keras import distribution

from keras_gpt.backend import hosts

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
    _check_backend(f"devices={devices!r}")
    found = distribution.list_devices()
    sizes = _read_sizes(devices, len(found))
    count = math.prod(sizes.values())
    if count < len(found) and hosts.place()[1] > 1:
        raise ValueError(
            f"Several hosts train on all of their {len(found)} devices. Received: "
            f"devices={devices!r}. Take devices='all', or give each host fewer."
        )
    if count > len(found):
        raise ValueError(
            f"`devices` asks for {count} where there are {len(found)}. Received: "
            f"{devices!r}. (To try it on a CPU, set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={count} "
            "--xla_cpu_multi_thread_eigen=false.)"
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


def join_hosts() -> bool:
    """Meet the processes of other hosts, if Keras's environment variables name them.

    They are `KERAS_DISTRIBUTION_JOB_ADDRESSES`, of which the first counts, `host:port`;
    `KERAS_DISTRIBUTION_NUM_PROCESSES`; and `KERAS_DISTRIBUTION_PROCESS_ID`, from 0 on.
    Call it in each process before anything touches a device, and spread the model over
    the devices of all with `make_distribution`.

    Returns:
        Whether this is the first process, which writes what all have computed, or the
        only one.

    Raises:
        ValueError: The backend isn't JAX, or a variable is missing or no number.
    """
    names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
    found = [os.environ.get(f"KERAS_DISTRIBUTION_{name}") for name in names]
    if any(found):
        _check_backend(f"KERAS_DISTRIBUTION_PROCESS_ID={found[2]}")
        addresses, *numbers = [value or "" for value in found]
        if not addresses or not all(number.isdigit() for number in numbers):
            received = [f"{n}={v}" for n, v in zip(names, found, strict=True)]
            raise ValueError(
                "Several hosts need KERAS_DISTRIBUTION_JOB_ADDRESSES, _NUM_PROCESSES "
                f"and _PROCESS_ID. Received: {', '.join(received)}. Set all on each."
            )
        hosts.join(addresses.split(",")[0], *map(int, numbers))
    return hosts.place()[0] == 0


def share_of_batches() -> dict[str, int]:
    """Which part of each batch this process reads, as arguments of `load_batches`."""
    spread = distribution.distribution()
    if spread is None or hosts.place()[1] == 1:
        return {"process_index": 0, "process_count": 1}
    return {
        "process_index": spread.data_shard_id,
        "process_count": min(spread.num_processes, spread.num_model_replicas),
    }


@contextlib.contextmanager
def gathered(model: keras.Model) -> Iterator[None]:
    """Let each process read and use the whole of each weight, as if it were alone.

    Args:
        model: Whose weights are cut over the devices of several processes, or not. All
            processes enter the block.
    """
    if hosts.place()[1] == 1:
        yield
        return
    with keras.StatelessScope(
        [
            (v, keras.ops.convert_to_tensor(hosts.to_numpy(v.value)))
            for v in model.variables
        ]
    ):
        yield


def _check_backend(received):
    if keras.backend.backend() != "jax":
        raise ValueError(
            "Several devices need JAX. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}, {received}. Set "
            "KERAS_BACKEND=jax before Python starts."
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
