"""Chat templates that write as those of well-known families do, and conversations."""

import random

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# its own system message where there is none
SMOLLM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n"
    "{% endif %}" + CHATML
)
# the same, and thoughts of earlier answers are forgotten
QWEN = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}{% for m in messages %}{% set text = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in text %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# trimmed contents
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
# the system message before the last question, strict turns, no special tokens around
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate.') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and system is defined %}"
    "{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "smollm": SMOLLM,
    "chatml": CHATML,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen": QWEN,
}
NAMED = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = {
    "llama": ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["<s>", "</s>"],
}
_TEXTS = (
    "Once upon",
    " a cat",
    "12 mats",
    "\n",
    "  ",
    "\u2003",
    "naïve",
    "你好",
    "<think>",
    "</think>",
    "|im_end|>",
    "<",
    "[INST]",
    "{{ messages }}",
)


def special_tokens(name):
    """What the tokenizer of a template has."""
    return ["<|endoftext|>", *SPECIAL.get(name, ["<|im_start|>", "<|im_end|>"])]


def make_conversations(count, special):
    """Conversations of 1 to 6 messages of the user, which spell special tokens."""
    rng = random.Random(0)

    def write():
        return "".join(rng.choices([*_TEXTS, *special], k=rng.randrange(6)))

    conversations = []
    for _ in range(count):
        turns = ["user", "assistant"] * rng.randrange(6) + ["user"]
        roles = ["system"] * rng.randrange(2) + turns
        conversations.append([{"role": r, "content": write()} for r in roles])
    return conversations


def as_inputs(conversations):
    """The inputs `roles` and `contents`, padded."""
    most = max(map(len, conversations)) + 1
    return {
        f"{key}s": [[m[key] for m in c] + [""] * (most - len(c)) for c in conversations]
        for key in ("role", "content")
    }
