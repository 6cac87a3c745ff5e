"""Talk to `keras-gpt serve` by OpenAI's own package: `pip install openai`.

    keras-gpt serve smollm2
    python client.py "What is the capital of France?"

`--url`, `--model` and the environment variable `KERAS_GPT_API_KEY` name another server.
"""

import argparse
import os

import openai

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("message")
parser.add_argument("--url", default="http://localhost:8000/v1")
parser.add_argument("--model", default="smollm2")
options = parser.parse_args()

client = openai.OpenAI(
    base_url=options.url, api_key=os.environ.get("KERAS_GPT_API_KEY", "none")
)
stream = client.chat.completions.create(
    model=options.model,
    messages=[{"role": "user", "content": options.message}],
    stream=True,
    stream_options={"include_usage": True},
)
for event in stream:
    for choice in event.choices:
        print(choice.delta.content, end="", flush=True)
print(f"\n({event.usage.prompt_tokens} + {event.usage.completion_tokens} tokens)")
