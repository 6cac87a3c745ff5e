# %% [markdown] cpu="4 min" t4="2 min"
# # From a text file to a GPT
#
# A text becomes token ids, a small GPT learns to predict the next one, and then writes.
# This takes minutes, and nothing is left out that a large model would have: a tokenizer
# that is trained, batches, a learning rate with warm-up, validation, sampling.

# %% tags=["parameters"]
CORPUS = (
    "embedded"  # the documentation that comes with Python; or a file that you upload
)
STEPS = 600  # more steps, better text

# %% [markdown]
# ## The data
#
# The tokenizer learns which 2,048 pieces of text are frequent. Then the corpus becomes
# two files of token ids: one to learn from, one to validate with.

# %%
import matplotlib.pyplot as plt

import keras_gpt

documents = list(keras_gpt.data.read_documents(CORPUS))
print(documents[0][:300])

tokenizer = keras_gpt.BytePairTokenizer.train(
    documents, vocab_size=2048, progress=False
)
about = keras_gpt.data.prepare(
    documents, "data/docs", tokenizer, progress=False, overwrite=True
)
for split, counts in about["splits"].items():
    print(f"{split}: {counts['num_tokens']:,} tokens")

# %%
ids = tokenizer.encode("The string module")
print(ids)
print([tokenizer.token(i) for i in ids])

# %% [markdown]
# ## The model
#
# A `GPT` is a `keras.Model`: token ids in, the logits of each next token out. A token
# becomes a vector of 128 numbers; four blocks let it look at the tokens before it
# (attention) and think about what it found (a feed-forward network).
# `FAST_ARCHITECTURE` is what recent models have: rotary positions, RMSNorm, SwiGLU.

# %%
config = keras_gpt.GPTConfig(
    vocab_size=tokenizer.vocab_size,
    context_length=128,
    embedding_dimension=128,
    num_layers=4,
    num_heads=4,
    **keras_gpt.FAST_ARCHITECTURE,
)
model = keras_gpt.GPT(config)
model.summary()

# %% [markdown]
# ## Training
#
# `compile_model` chooses what GPTs are trained with; the rest is Keras's own `fit`. A
# model that knows nothing finds every token equally likely: its loss is
# ln 2048 = 7.6. Watch it fall.

# %%
EPOCHS = min(10, STEPS)
keras_gpt.training.compile_model(
    model, recipe="fast", total_steps=STEPS, warmup_steps=STEPS // 10
)
batches = keras_gpt.data.load_batches("data/docs", "train", 16, 128)
validation = keras_gpt.data.load_batches(
    "data/docs", "val", 16, 128, order="sequential", num_steps=10
)
history = model.fit(
    batches,
    epochs=EPOCHS,
    steps_per_epoch=STEPS // EPOCHS,
    validation_data=validation,
    shuffle=False,
    verbose=2,
)

# %%
steps = [STEPS // EPOCHS * (epoch + 1) for epoch in history.epoch]
plt.figure(figsize=(7, 4))
plt.plot(steps, history.history["loss"], marker="o", label="training")
plt.plot(steps, history.history["val_loss"], marker="o", label="validation")
plt.xlabel("step")
plt.ylabel("loss (nats per token)")
plt.ylim(bottom=0)
plt.grid(alpha=0.3)
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Writing
#
# A `LanguageModel` is a GPT with its tokenizer: text in, text out. A lower
# `temperature` is safer, a higher one wilder, and another `seed` gives another text.

# %%
lm = keras_gpt.LanguageModel(model, tokenizer)
prompt = "Return the "
print(prompt, end="")
for piece in lm.stream(prompt, max_new_tokens=120, temperature=0.6, top_p=0.9, seed=0):
    print(piece, end="", flush=True)

# %% [markdown]
# How good is it? Bits per byte compare models with different tokenizers: 8 is a text
# that one can't predict at all, a good compressor needs about 2, this model

# %%
tokens = keras_gpt.data.TokenDataset("data/docs", "val")[:20_000]
print(f"{lm.evaluate_ids([tokens.tolist()]).bits_per_byte:.2f} bits per byte")

# %% [markdown]
# ## Keep it
#
# The folder holds weights, tokenizer and configuration, and any backend reads what any
# backend wrote. To see that, choose another `BACKEND` in the first cell, restart the
# session, run that cell and the next one: the text is the same.

# %%
lm.save("runs/first_gpt")

# %%
lm = keras_gpt.LanguageModel.load("runs/first_gpt")
print(lm.generate("Return the ", max_new_tokens=40, temperature=0))
