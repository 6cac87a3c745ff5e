"""Conversations in exported models: the ids, answers and refusals of `lm.chat`."""

import keras
import pytest

from keras_gpt import BytePairTokenizer
from keras_gpt.export.chat_layout import learn_layout
from keras_gpt.tokenizers import ChatTemplate, encode_chat
from tests.export.conftest import TEXT
from tests.export.templates import (
    CHATML,
    NAMED,
    TEMPLATES,
    as_inputs,
    make_conversations,
    special_tokens,
)

ROOM = 160


def write(template, roles):
    layout = learn_layout(ChatTemplate(template, NAMED))
    return layout.write(roles, [f" {number} " for number in range(len(roles))])


def test_layout_writes_what_the_template_writes():
    assert write(TEMPLATES["mistral"], ["system", "user", "assistant", "user"]) == (
        "<s>[INST]  1 [/INST]  2 </s>[INST]  0 \n\n 3 [/INST]"
    )
    assert write(TEMPLATES["llama"], ["user"]) == (
        "<s><|start_header_id|>user<|end_header_id|>\n\n0<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    # other orders of roles, where the template writes them turn by turn
    assert write(CHATML, ["user", "user", "system"]) is not None
    assert write(TEMPLATES["mistral"], ["user", "user"]) is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "way of its own",
        ),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "once"),
        ("{{ messages | length }}" + CHATML, "more than the roles beside it"),
        (CHATML + "{{ strftime_now('%Y') }}", "today's date"),
        (
            CHATML.replace("m.content", "m.content.replace('a', 'b')"),
            "changes contents",
        ),
        ("{{ raise_exception('No.') }}", "refuses a message of the user"),
    ],
)
def test_template_that_is_no_table_is_refused_with_the_reason(template, reason):
    with pytest.raises(ValueError, match=f"{reason}.* default='generate'"):
        learn_layout(ChatTemplate(template))


def test_empty_system_message_may_count_as_none():
    template = CHATML.replace(
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
        "{% if m.content or m.role != 'system' %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}",
    )
    layout = learn_layout(ChatTemplate(template))
    assert layout.drops_empty_system
    assert layout.write(["system", "user"], ["", "a"]) == (
        "[user]a<|im_start|>assistant\n"
    )


@pytest.mark.every_backend
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="graphs are TensorFlow's"
)
@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_of_conversations_are_those_of_encode_chat(name):
    import tensorflow as tf

    from keras_gpt.export.chat_ops import ChatEncoder
    from keras_gpt.export.text_ops import make_text_encoder

    special = special_tokens(name)
    tokenizer = BytePairTokenizer.train(
        [TEXT], 320, special_tokens=special, progress=False
    )
    template = ChatTemplate(TEMPLATES[name], NAMED)
    encode = tf.function(
        ChatEncoder(learn_layout(template), tokenizer, make_text_encoder(tokenizer)),
        autograph=False,
        input_signature=[tf.TensorSpec([None, None], tf.string)] * 2
        + [tf.TensorSpec([None], tf.int32)],
    )
    conversations = make_conversations(200, special)
    wanted, too_long = [], []
    for conversation in conversations:
        try:
            wanted.append(encode_chat(template, tokenizer, conversation, ROOM))
        except ValueError:
            too_long.append(conversation)
    fitting = [c for c in conversations if c not in too_long]
    assert len(fitting) > 150
    # the oldest messages were left out of some
    whole = [encode_chat(template, tokenizer, c, 10**6) for c in fitting]
    assert whole != wanted
    token_ids, lengths = encode(*as_inputs(fitting).values(), [ROOM] * len(fitting))
    rows = zip(token_ids.numpy().tolist(), lengths.numpy(), strict=True)
    assert [ids[:length] for ids, length in rows] == wanted
    for conversation in too_long[:2]:
        with pytest.raises(tf.errors.InvalidArgumentError, match="too long"):
            encode(*as_inputs([conversation]).values(), [ROOM])
    # a server that batches fills a row up with its first values
    short = [["user", "", "user", "user"], ["user", "assistant", "user", ""]]
    texts = [["a", "", "a", "a"], ["a", "b", "c", ""]]
    together = encode(short, texts, [ROOM] * 2)[0][0].numpy().tolist()
    alone = encode([["user", ""]], [["a", ""]], [ROOM])[0][0].numpy().tolist()
    assert together[: len(alone)] == alone
    assert not any(together[len(alone) :])
    bad = [
        ("roles` must be system, user, assistant", ["tool", ""], ["a", ""]),
        ("end in an empty one", ["user"], ["a"]),
        ("for each message", ["", "user", ""], ["", "a", ""]),
        ("must both be", ["user", ""], ["a"]),
    ]
    if name == "mistral":
        bad.append(("roles in this order", ["user", "user", ""], ["a", "b", ""]))
    for message, *row in bad:
        inputs = [[values] for values in row]
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            encode(*inputs, [ROOM])
