"""Ask a served model over REST or gRPC.

    python client.py "The string module " "A list is"
    python client.py --address localhost:8500 --label stable "The string module "

The first is REST, the second gRPC, of the version with that label.
"""

import argparse

from keras_gpt.tf_serving import Client

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("prompts", nargs="+", help="one or more")
parser.add_argument(
    "--address",
    default="http://localhost:8501",
    help="http://host:8501 for REST, host:8500 for gRPC",
)
parser.add_argument("--model", default="docs", help="its name on the server")
parser.add_argument("--label", help="of a version; else the newest answers")
parser.add_argument("--max-new-tokens", type=int, default=32, help="an answer's most")
parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
parser.add_argument("--seed", type=int, default=0, help="of the first prompt")
options = parser.parse_args()

with Client(options.address, model=options.model, label=options.label) as client:
    client.wait_until_ready()
    completions = client.complete(
        options.prompts,
        options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )
for prompt, completion in zip(options.prompts, completions, strict=True):
    print(f"> {prompt}{completion.text}")
    print(f"({completion.num_tokens} tokens, {completion.finish_reason})")
