# %% [markdown] cpu="20 s" t4="2 min"
# # What attention looks at
#
# In every layer of a GPT each token looks back at the tokens before it, through several
# *heads*, and takes something from those that it attends to. What they look at can be
# read off. SmolLM2, 135 million parameters, has 30 layers of 9 heads: 270 ways of
# looking.

# %% tags=["parameters"]
MODEL = "smollm2"
TEXT = "When Mary and John went to the shop, John gave a bottle of milk to"

# %%
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image, display

import keras_gpt

lm = keras_gpt.LanguageModel.from_pretrained(MODEL)
print(lm.generate(TEXT, max_new_tokens=3, temperature=0))

# %% [markdown]
# Whom did John give it to? To know that, the model had to look at the names. `weights`
# says how: for each layer and head, for each token (row), how much it attends to each
# earlier one (column). A row sums to 1.

# %%
attention = lm.attention(TEXT)
print("layers, heads, tokens, tokens:", attention.weights.shape)
layer = len(attention.weights) // 2
display(Image(attention.draw(layers=[layer])))

# %% [markdown]
# ## Three kinds of heads
#
# Most rows of most heads do little: they rest on the first token, a *sink* that says
# "nothing to find here". Some heads look at the token just before. And some do what
# makes language models learn from their prompt: in a text that repeats itself they find
# the place where the present token stood before, and look at what came **after** it.
# They are called [induction heads](https://arxiv.org/abs/2209.11895). A random text,
# twice, shows them:

# %%
rng = np.random.default_rng(0)
words = [" apple", " seven", " blue", " river", " chair", " Monday", " glass", " wind"]
words = [words[i] for i in rng.permutation(len(words))]
repeated = "".join(words * 2).strip()
weights = lm.attention(repeated).weights
n = weights.shape[-1] // 2
print(repeated)

# %%
query = np.arange(n + 1, 2 * n)  # tokens of the second half
scores = {
    "the first token": weights[:, :, 1:, 0].mean(-1),
    "the token before": weights[:, :, query, query - 1].mean(-1),
    "what came after it, before": weights[:, :, query, query - n + 1].mean(-1),
}
figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, layout="constrained")
for axis, (name, score) in zip(axes, scores.items(), strict=True):
    picture = axis.imshow(score, vmin=0, vmax=1, cmap="magma", aspect="auto")
    axis.set_title(f"attention to {name}", fontsize=10)
    axis.set_xlabel("head")
axes[0].set_ylabel("layer")
figure.colorbar(picture, ax=axes, shrink=0.8, label="mean attention")
plt.show()

# %% [markdown]
# Each cell is a head; a bright one does what the title says. Here are the clearest
# induction head, and the head that looks most at the token before. An induction head
# needs such a head in a layer below it: that one tells each token what preceded it.


# %%
def draw_head(axis, layer, head, title):
    """The map of one head: rows look at columns."""
    tokens = lm.attention(repeated).tokens
    axis.imshow(weights[layer, head], cmap="magma", vmin=0, vmax=1)
    axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    axis.set_yticks(range(len(tokens)), tokens, fontsize=8)
    axis.set_title(f"{title}: layer {layer}, head {head}", fontsize=10)


figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
for axis, name in zip(axes, list(scores)[1:], strict=True):
    best = np.unravel_index(scores[name].argmax(), scores[name].shape)
    draw_head(axis, *map(int, best), f"to {name}")
plt.show()

# %% [markdown]
# ## Does it matter?
#
# If these heads do the work, the second half of the repeated text must be much easier
# than the first: the model has seen it once.

# %%
log_probs = lm.score(repeated)
plt.figure(figsize=(8, 3.5))
place = np.arange(1, len(log_probs) + 1)
plt.bar(place, -log_probs, color=np.where(place < n, "#888", "#d62"))
plt.xticks(place, lm.attention(repeated).tokens[1:], rotation=90)
plt.ylabel("surprise (nats)")
plt.title("first time grey, second time orange", fontsize=10)
plt.show()

# %% [markdown]
# Your own text, all heads of some layers, as a file to keep (`layers` can be left out):

# %%
lm.attention("The cat sat on the mat because it was tired.").save(
    "runs/attention.png", layers=[layer]
)
