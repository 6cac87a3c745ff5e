# %% [markdown] extras="metrics" cpu="18 min" t4="2 min"
# # Teach SmolLM2 to summarize
#
# A pretrained model knows English; a task it has to be shown. Here SmolLM2, 135 million
# parameters, learns to write the first line of a docstring from the rest of it. The
# examples are in every Python: the first line of a docstring *is* its summary
# (PEP 257).

# %% tags=["parameters"]
MODEL = "smollm2"
TRAIN, TEST = 400, 40  # examples
MAX_NEW_TOKENS = 32

# %% [markdown]
# ## Examples
#
# One record a line, `text` and `summary`: from these two names `keras_gpt` knows the
# task. Put your own records into such a file to teach something else: `prompt` and
# `completion` for anything, `source` and `target` for translations.

# %%
import ast
import itertools
import json
import random
import sysconfig
from pathlib import Path

import keras_gpt
from keras_gpt import evaluation, runs


def read_pairs(module):
    """The docstrings of a file, each as a record."""
    for node in ast.walk(ast.parse(module.read_bytes())):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.Module):
            continue
        first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
        summary, text = " ".join(first.split()), " ".join(rest.split())
        if 3 <= len(summary.split()) <= 20 and 20 <= len(text.split()) <= 150:
            yield {"text": text, "summary": summary}


modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
random.Random(0).shuffle(modules)
pairs = itertools.chain.from_iterable(map(read_pairs, modules))
test = list(itertools.islice(pairs, TEST))
train = list(itertools.islice(pairs, TRAIN))
Path("data").mkdir(exist_ok=True)
for name, records in {"train": train, "test": test}.items():
    lines = "\n".join(map(json.dumps, records))
    Path(f"data/{name}.jsonl").write_text(lines, encoding="utf-8")
print(f"{len(train)} to learn from, {len(test)} to judge by, such as")
print(json.dumps(test[0], indent=2))

# %% [markdown]
# ## Before
#
# The loss says how unlikely the model finds the summaries that people wrote; ROUGE-L,
# from 0 to 100, how much of them is in those that it writes.

# %%
INSTRUCTION = "Write the first line of the docstring that goes on as follows."


def judge(lm):
    """Loss and ROUGE on the examples that aren't taught."""
    result = evaluation.evaluate_task(
        lm, "data/test.jsonl", max_new_tokens=MAX_NEW_TOKENS
    )
    print(f"loss {result.loss:.3f}, ROUGE-L {result.scores['rougeL']:.1f}")


lm = keras_gpt.LanguageModel.from_pretrained(MODEL)
lm.tasks = {"summarize": {"instruction": INSTRUCTION}}  # asked as it will be
judge(lm)
before = lm.summarize([pair["text"] for pair in test[:3]], MAX_NEW_TOKENS)

# %% [markdown]
# ## Tuning
#
# LoRA freezes the model and trains thin matrices beside its own: 4.9 million numbers
# rather than 135 million. Only the summaries are learned, not the texts. The run is a
# folder: when the session ends, the same cell with `resume=True` goes on.

# %%
tuned = runs.finetune(
    runs.FinetuneConfig(
        model=MODEL,
        data="data/train.jsonl",
        output="runs/summaries",
        instruction=INSTRUCTION,
        batch_size=2,
        sample_tokens=0,
    )
)

# %% [markdown]
# ## After

# %%
judge(tuned)
after = tuned.summarize([pair["text"] for pair in test[:3]], MAX_NEW_TOKENS)
for pair, old, new in zip(test, before, after, strict=False):
    print(f"\nwritten by a person: {pair['summary']}")
    print(f"before:              {' '.join(old.split())}")
    print(f"after:               {' '.join(new.split())}")

# %% [markdown]
# ## Use it
#
# What it was tuned for is saved with it: `lm.summarize` and `lm.answer` ask it as it
# was taught. The folder has the adapter alone, some MB; `merge_adapter` adds it to the
# weights, for Transformers (`save_huggingface`), llama.cpp (`save_gguf`) or a server
# (`export`, in another notebook of this gallery).

# %%
lm = keras_gpt.LanguageModel.load("runs/summaries")
text = "The file is read line by line. Empty lines and comments, which begin with a "
text += "number sign, are skipped. The values are returned as a dictionary by name."
print(lm.summarize(text, MAX_NEW_TOKENS))

# %%
lm.merge_adapter()
lm.save_huggingface("runs/summaries_merged")
print(sorted(path.name for path in Path("runs/summaries_merged").iterdir()))
