# %% [markdown] extras="tensorflow" cpu="70 s" t4="3 min"
# # Export a model, and serve it
#
# A model that is served has to work where Python isn't: `export` writes a TensorFlow
# SavedModel with all in its graph, from text to text: the tokenizer, the chat template,
# the key-value cache and the loop that writes token by token. The stock TensorFlow
# Serving serves it. Here it is exported and then called, as the server would.

# %% tags=["parameters"]
MODEL = "smollm2"
MAX_NEW_TOKENS = 32

# %%
import keras_gpt

lm = keras_gpt.LanguageModel.from_pretrained(MODEL, dtype="float32")
questions = ["What is the capital of France?", "What is rain?"]
expected = lm.answer(questions, MAX_NEW_TOKENS, temperature=0)
for question, answer in zip(questions, expected, strict=True):
    print(f"{question}\n  {answer}\n")

# %% [markdown]
# ## Export
#
# Whatever the backend, TensorFlow builds the graph. A model that you tuned goes the
# same way: `LanguageModel.load("runs/mine")`, then `merge_adapter()`.

# %%
folder = lm.export(
    "served/assistant",
    next_version=True,
    max_new_tokens=MAX_NEW_TOKENS,
    max_prompt_tokens=256,
    batch_sizes=[1],
    temperature=0,
)
print(sorted(path.name for path in folder.iterdir()))

# %% [markdown]
# ## Call it
#
# Strings in, strings out; nothing of `keras_gpt` or Keras is needed. The operations of
# the tokenizer are tensorflow-text's, which the server has too.

# %%
import tensorflow as tf
import tensorflow_text  # noqa: F401  # registers its operations

served = tf.saved_model.load(str(folder))
print(sorted(served.signatures))

# %%
default = served.signatures["serving_default"]
output = default(prompt=tf.constant(questions))
answers = [text.decode() for text in output["text"].numpy()]
for question, answer in zip(questions, answers, strict=True):
    print(f"{question}\n  {answer}\n")
print("the same as before the export:", answers == expected)

# %% [markdown]
# A conversation is roles and contents; how a text is continued can be chosen for each
# row of a batch.

# %%
output = served.signatures["chat"](
    roles=tf.constant([["user", ""]]),  # an empty one ends the conversation
    contents=tf.constant([["Name three colors.", ""]]),
)
print(output["text"].numpy()[0].decode())

# %%
output = served.signatures["score"](text=tf.constant(["The sky is blue."]))
print(output["log_probs"].numpy().round(2))

# %% [markdown]
# ## Serve it
#
# The folder has a README.md with its signatures, and what to type:

# %%
print((folder / "README.md").read_text()[:1500])

# %% [markdown]
# On a machine with Docker, from the folder of this notebook:
#
# ```bash
# docker run -p 8501:8501 -v $PWD/served/assistant:/models/assistant \
#     -e MODEL_NAME=assistant tensorflow/serving:2.20.0
# curl -d '{"instances": [{"prompt": "What is rain?"}]}' \
#     http://localhost:8501/v1/models/assistant:predict
# ```
#
# and in Python `keras_gpt.tf_serving.Client("http://localhost:8501", "assistant")`.
# For a server of one machine, with OpenAI's interface and a page to look into the
# model, nothing needs to be exported: `keras-gpt serve smollm2`.
