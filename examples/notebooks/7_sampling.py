# %% [markdown] cpu="1 min" t4="2 min"
# # Sampling explained
#
# A language model doesn't write. It says, for each token of its vocabulary, how likely
# it is to come next; how one is chosen is up to us. `temperature`, `top_k`, `top_p`,
# `min_p`, `repetition_penalty`: here is what each does to the probabilities of one
# token, and to texts.

# %% tags=["parameters"]
MODEL = "smollm2"
PROMPT = "The best thing about the sea is"
MAX_NEW_TOKENS = 24

# %%
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import keras_gpt

lm = keras_gpt.LanguageModel.from_pretrained(MODEL)
ids = lm.tokenizer.encode(PROMPT)
logits = ops.convert_to_numpy(ops.cast(lm.model(np.array([ids])), "float32"))[0, -1]
print(f"{len(logits):,} logits, from {logits.min():.1f} to {logits.max():.1f}")


# %%
def softmax(logits, temperature=1.0):
    """Probabilities, as `temperature` sharpens or flattens them."""
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


order = np.argsort(-logits)
tokens = [lm.tokenizer.decode([int(i)]).strip() or "␣" for i in order[:20]]


def draw(axis, probabilities, title, kept=None):
    """Bars of the 20 likeliest tokens; those that can't be chosen are grey."""
    values = probabilities[order[:20]]
    is_kept = np.ones(20, bool) if kept is None else kept[order[:20]]
    axis.bar(range(20), values, color=np.where(is_kept, "#4a90c2", "#ddd"))
    axis.set_xticks(range(20), tokens, rotation=90, fontsize=8)
    axis.set_title(title, fontsize=10)


# %% [markdown]
# ## Temperature
#
# The logits are divided by it before they become probabilities. Below 1 the likely
# becomes likelier; above 1 the unlikely gets a chance; 0 is *greedy*: always the
# likeliest.

# %%
figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), sharey=True, layout="constrained")
for axis, temperature in zip(axes, (0.5, 1.0, 1.5), strict=True):
    draw(axis, softmax(logits, temperature), f"temperature={temperature}")
axes[0].set_ylabel("probability")
figure.suptitle(f"{PROMPT} ...")
plt.show()

# %% [markdown]
# How much is in the tail that isn't shown? Tens of thousands of tokens, each hardly
# possible, are together likely; and one of them, once in a while, spoils a text.

# %%
for temperature in (0.5, 1.0, 1.5):
    p = softmax(logits, temperature)
    print(
        f"temperature={temperature}: {1 - p[order[:20]].sum():.0%} beyond the first 20"
    )

# %% [markdown]
# ## Cutting the tail
#
# - `top_k=5`: the 5 likeliest, however likely.
# - `top_p=0.5`: as many of the likeliest as reach half of all probability: few where
#   the model is sure, many where it isn't.
# - `min_p=0.2`: those that are at least 0.2 times as likely as the likeliest.

# %%
p = softmax(logits)
ranks = np.empty(len(p), int)
ranks[order] = np.arange(len(p))
before = np.empty(len(p))
before[order] = np.cumsum(p[order]) - p[order]  # of those that are likelier
kept = {
    "top_k=5": ranks < 5,
    "top_p=0.5": before < 0.5,
    "min_p=0.2": p >= 0.2 * p.max(),
}
figure, axes = plt.subplots(1, 3, figsize=(13, 3.2), sharey=True, layout="constrained")
for axis, (name, is_kept) in zip(axes, kept.items(), strict=True):
    draw(axis, p, f"{name}: {is_kept.sum()} tokens", is_kept)
axes[0].set_ylabel("probability")
plt.show()

# %% [markdown]
# ## What becomes of texts
#
# The same prompt with other controls. Each choice has a `seed`, and the same seed gives
# the same text on every backend.

# %%
choices = {
    "greedy": {"temperature": 0},
    "temperature=0.7, top_p=0.9": {"temperature": 0.7, "top_p": 0.9},
    "temperature=1": {"temperature": 1.0},
    "temperature=2": {"temperature": 2.0},
    "temperature=2, min_p=0.1": {"temperature": 2.0, "min_p": 0.1},
}
unlimited = {"top_k": None, "top_p": None, "repetition_penalty": 1.0}
for name, controls in choices.items():
    print(f"--- {name}")
    for seed in (0, 1):
        text = lm.generate(
            PROMPT, MAX_NEW_TOKENS, seed=seed, **{**unlimited, **controls}
        )
        print("   ", " ".join(text.split()))

# %% [markdown]
# Greedy is the same for each seed. A temperature of 2 alone is noise; with `min_p` it
# is wild, and still English.
#
# ## Repetition
#
# Greedy texts run in circles: what was written once is likely again.
# `repetition_penalty` lowers the logits of tokens that are there already, and
# takes from a list its commas, too.

# %%
LIST = "The animals in the zoo are: the lion, the tiger,"
for penalty in (1.0, 1.2):
    text = lm.generate(
        LIST, 2 * MAX_NEW_TOKENS, temperature=0, repetition_penalty=penalty
    )
    words = text.split()
    print(f"--- repetition_penalty={penalty}: {len(set(words))} of {len(words)} words")
    print("   ", " ".join(words))

# %% [markdown]
# ## How sure was it?
#
# `complete` gives the probability of each token that was chosen: low bars are where a
# text took a turn that the model hadn't expected.

# %%
[completion] = lm.complete(PROMPT, MAX_NEW_TOKENS, temperature=1.0, seed=1)
pieces = [lm.tokenizer.decode([i]) for i in completion.ids]
plt.figure(figsize=(10, 3))
plt.bar(range(len(pieces)), np.exp(completion.log_probs), color="#4a90c2")
plt.xticks(range(len(pieces)), [repr(piece)[1:-1] for piece in pieces], rotation=90)
plt.ylabel("probability")
plt.show()
