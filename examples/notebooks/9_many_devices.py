# %% [markdown] cpu="40 s" t4="2 min"
# # Many devices: a TPU, or two GPUs
#
# A TPU of Colab has eight cores, Kaggle lends two T4. With JAX one setting spreads a
# model over them, and everything else stays: `fit`, `generate`, `save`. Where there is
# one processor only, JAX can pretend that it is four, which is enough to see how it
# works.
#
# (This one needs `BACKEND = "jax"`: Keras's `fit` has distribution on JAX alone.)

# %% tags=["parameters"]
CORPUS = "embedded"  # the documentation that comes with Python; or a folder of texts
SPREAD = "all"  # or "fsdp:4", "data:2,model:2": see below
LAYERS = 2
STEPS = 240

# %%
import os

# Counts where there are neither GPUs nor TPUs, and before JAX is first used. A product
# that is spread over threads may wait for ever for one that waits for another device.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_cpu_multi_thread_eigen=false",
)

import keras
import matplotlib.pyplot as plt
import numpy as np

import keras_gpt

devices = keras.distribution.list_devices()
print(devices)

# %% [markdown]
# ## Three ways to cut
#
# | spread | what is cut | when |
# |---|---|---|
# | `"all"`, `"data:4"` | the batch: each device has the whole model | it fits one |
# | `"fsdp:4"` | the weights and the optimizer's state too | it doesn't |
# | `"data:2,model:2"` | the batch, and each matrix | batches have few rows |

# %%
documents = list(keras_gpt.data.read_documents(CORPUS))
tokenizer = keras_gpt.BytePairTokenizer.train(documents, 1024, progress=False)
keras_gpt.data.prepare(
    documents, "data/docs", tokenizer, progress=False, overwrite=True
)
config = keras_gpt.GPTConfig(
    vocab_size=tokenizer.vocab_size,
    context_length=64,
    embedding_dimension=64,
    num_layers=LAYERS,
    num_heads=4,
    **keras_gpt.FAST_ARCHITECTURE,
)


def train(spread):
    """A model that learned on some devices, and its losses."""
    distribution = spread and keras_gpt.training.make_distribution(spread)
    keras.distribution.set_distribution(distribution)
    keras.utils.set_random_seed(0)
    model = keras_gpt.GPT(config)
    keras_gpt.training.compile_model(model, 3e-3, total_steps=STEPS)
    batches = keras_gpt.data.load_batches("data/docs", "train", 16, 64)
    history = model.fit(
        batches, epochs=6, steps_per_epoch=STEPS // 6, shuffle=False, verbose=0
    )
    return model, history.history["loss"]


alone, losses_alone = train(None)
together, losses_together = train(SPREAD)

# %% [markdown]
# ## The same numbers
#
# What many devices compute is what one computes, up to rounding, which grows a little
# from step to step.

# %%
plt.figure(figsize=(6, 3.5))
plt.plot(losses_alone, linewidth=6, alpha=0.3, label="one device")
plt.plot(losses_together, marker="o", label=f'"{SPREAD}" of {len(devices)} devices')
plt.xlabel("epoch")
plt.ylabel("loss")
plt.legend(frameon=False)
plt.show()
difference = np.abs(np.subtract(losses_alone, losses_together)).max()
print(f"largest difference: {difference:.1e}")

# %% [markdown]
# ## Where the weights are
#
# Of each matrix JAX can say which device holds which part:

# %%
kernel = max(together.trainable_variables, key=lambda v: np.prod(v.shape))
print(kernel.path, kernel.shape)
for shard in kernel.value.addressable_shards:
    print(shard.device, "holds", shard.data.shape)

# %% [markdown]
# With `SPREAD = "all"` each holds everything; choose `"fsdp:4"` (or as many devices as
# there are) above, run again, and each holds a quarter.
#
# ## Use it
#
# Generation is spread as well; and a folder that many devices wrote is read by one.

# %%
keras_gpt.LanguageModel(together, tokenizer).save("runs/together")
keras.distribution.set_distribution(None)
lm = keras_gpt.LanguageModel.load("runs/together")
print(lm.generate("Return the ", max_new_tokens=24, temperature=0.7, seed=0))

# %% [markdown]
# A whole run in a folder, with checkpoints and exact resume, is one command, on several
# hosts too: `keras-gpt train --devices all`, `keras-gpt finetune --devices fsdp:8`.
