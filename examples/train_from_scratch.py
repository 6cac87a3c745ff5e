"""From a text to a GPT that continues it: the Python API from top to bottom.

Takes about 2 minutes on 2 CPU cores, from nothing but this file and the package:

    KERAS_BACKEND=jax python examples/train_from_scratch.py [--corpus FILE]
"""

import argparse

import keras_gpt

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--corpus", default="embedded", help="a text file or a folder")
parser.add_argument("--steps", type=int, default=300, help="steps of training")
parser.add_argument("--output", default="runs/from_scratch", help="folder to write")
parser.add_argument("--prompt", default="The string module ", help="text to continue")
options = parser.parse_args()

# Text becomes token ids. "embedded" is the documentation that comes with Python.
documents = keras_gpt.data.read_documents(options.corpus)
tokenizer = keras_gpt.BytePairTokenizer.train(documents, vocab_size=2048)
data = f"{options.output}/data"
keras_gpt.data.prepare(options.corpus, data, tokenizer, overwrite=True)

# The model: a keras.Model from ids (batch, sequence) to logits of each next token.
config = keras_gpt.GPTConfig(
    vocab_size=tokenizer.vocab_size,
    context_length=128,
    embedding_dimension=192,
    num_layers=4,
    num_heads=6,
    position_embedding="rotary",
)
model = keras_gpt.GPT(config)
model.summary()

# Training: AdamW with warm-up and cosine decay; each batch is (ids, next ids).
warmup_steps = options.steps // 10
keras_gpt.training.compile_model(
    model, 2e-3, total_steps=options.steps, warmup_steps=warmup_steps
)
batches = keras_gpt.data.load_batches(data, "train", batch_size=16, sequence_length=128)
model.fit(batches, steps_per_epoch=options.steps, shuffle=False)

# Model and tokenizer together: text in, text out, in a folder that any backend reads.
keras_gpt.LanguageModel(model, tokenizer).save(options.output)
language_model = keras_gpt.LanguageModel.load(options.output)
validation = keras_gpt.data.TokenDataset(data, "val")[:20_000]
result = language_model.evaluate_ids([validation.tolist()])
print(f"Validation: loss {result.loss:.3f}, {result.bits_per_byte:.3f} bits per byte")
print(options.prompt + language_model.generate(options.prompt, max_new_tokens=120))
