# %% [markdown] cpu="3 min" t4="3 min"
# # Tokenizers compared
#
# A language model sees numbers, not letters. A tokenizer cuts a text into pieces and
# gives each a number. Large pieces make texts short, and a model quick; but each piece
# needs a row in the model's first and last matrix, and rare ones are seen too seldom to
# be learned. Here three kinds of tokenizers are trained on one text, looked at, and
# judged by what counts: how well the same small model learns with each.

# %% tags=["parameters"]
CORPUS = "embedded"  # the documentation that comes with Python; or a folder of texts
VOCABULARIES = [300, 500, 1000, 2000, 4000]
STEPS = 200  # of training each model

# %%
import html
import math

import keras
import matplotlib.pyplot as plt
from IPython.display import HTML, display

import keras_gpt

documents = list(keras_gpt.data.read_documents(CORPUS))
held_out = documents[::20]
corpus = [text for i, text in enumerate(documents) if i % 20]
print(f"{sum(map(len, corpus)):,} characters to learn from")

# %% [markdown]
# ## Three kinds
#
# - **Characters**: each has a number. Nothing to learn, long texts.
# - **Byte pairs** (GPT-2, Llama 3): begin with the 256 bytes; again and again make one
#   piece of the two that stand side by side most often. Any text can be written.
# - **SentencePiece, unigram** (T5, ALBERT): begin with many pieces, drop those that
#   matter least for the likelihood of the text.

# %%
size = VOCABULARIES[-2]
tokenizers = {
    "characters": keras_gpt.CharacterTokenizer.train(documents),
    f"byte pairs, {size}": keras_gpt.BytePairTokenizer.train(
        corpus, size, progress=False
    ),
    f"SentencePiece, {size}": keras_gpt.SentencePieceTokenizer.train(
        corpus, size, model_type="unigram"
    ),
}


def show(text):
    """Each tokenizer's pieces of a text, one colour after the other."""
    colors = ["#cfe8ff", "#ffe3b8", "#d6f5d6", "#f5d6ee"]
    rows = []
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.encode(text)
        pieces = "".join(
            f'<span style="background:{colors[i % 4]};color:#000;white-space:pre">'
            f"{html.escape(tokenizer.token(id_).replace('▁', ' '))}</span>"
            for i, id_ in enumerate(ids)
        )
        rows.append(f"<p><b>{name}</b>: {len(ids)} tokens<br><code>{pieces}</code></p>")
    display(HTML("".join(rows)))


show("If the file cannot be opened, an OSError is raised.")

# %% [markdown]
# Frequent words are whole, rare ones fall into pieces. Try your own words, other
# languages, numbers: `show("...")`.
#
# ## How short do texts become?

# %%
sizes, bytes_per_token = [], []
held_out_bytes = sum(len(text.encode()) for text in held_out)
for size in VOCABULARIES:
    tokenizer = keras_gpt.BytePairTokenizer.train(corpus, size, progress=False)
    tokenizers[f"byte pairs, {size}"] = tokenizer
    num_tokens = sum(map(len, tokenizer.encode_batch(held_out)))
    sizes.append(size)
    bytes_per_token.append(held_out_bytes / num_tokens)

plt.figure(figsize=(6, 3.5))
plt.plot(sizes, bytes_per_token, marker="o")
plt.axhline(1, color="#888", linestyle=":", label="characters")
plt.xscale("log")
plt.xticks(sizes, sizes)
plt.minorticks_off()
plt.xlabel("vocabulary")
plt.ylabel("bytes per token")
plt.ylim(bottom=0)
plt.grid(alpha=0.3)
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# Each doubling of the vocabulary gains less than the one before it.
#
# ## Which is best to learn with?
#
# The loss per token can't say: a token of one tokenizer is more text than a token of
# another. **Bits per byte** can: the loss of the whole text, divided by its bytes. Each
# model gets as many steps, and as much text in each step: rows of 256 bytes, about.

# %%


def train(name, tokenizer):
    """Bits per byte of a small GPT that learned with a tokenizer."""
    folder = f"data/{name}"
    keras_gpt.data.prepare(corpus, folder, tokenizer, progress=False, overwrite=True)
    text = held_out[0]
    length = math.ceil(256 * len(tokenizer.encode(text)) / len(text.encode()))
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        embedding_dimension=96,
        num_layers=3,
        num_heads=4,
        **keras_gpt.FAST_ARCHITECTURE,
    )
    keras.utils.set_random_seed(0)
    model = keras_gpt.GPT(config)
    keras_gpt.training.compile_model(
        model, recipe="fast", total_steps=STEPS, warmup_steps=STEPS // 10
    )
    batches = keras_gpt.data.load_batches(folder, "train", 8, length)
    model.fit(batches, steps_per_epoch=STEPS, shuffle=False, verbose=0)
    lm = keras_gpt.LanguageModel(model, tokenizer)
    return lm.evaluate(held_out[:40]).bits_per_byte


bits = {}
for name, tokenizer in tokenizers.items():
    bits[name] = train(name, tokenizer)
    print(f"{name:22} {bits[name]:.3f} bits per byte", flush=True)

# %%
names = sorted(bits, key=bits.get, reverse=True)
plt.figure(figsize=(7, 3.5))
bars = plt.barh(names, [bits[name] for name in names], color="#4a90c2")
plt.bar_label(bars, fmt="%.2f", padding=3)
plt.xlabel("bits per byte of text that was held out (less is better)")
plt.xlim(right=1.15 * max(bits.values()))
plt.tight_layout()
plt.show()

# %% [markdown]
# With so short a training a larger vocabulary helps: it gives the model words for
# nothing. But look at the size of the models: with 4,000 pieces of 96 numbers, the
# table of pieces is larger than all else. Longer training and larger models move the
# best vocabulary; GPT-2 has 50 thousand, Llama 3 has 128 thousand.
