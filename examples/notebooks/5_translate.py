# %% [markdown] extras="metrics" others=["babel", "django"] cpu="7 min" t4="2 min"
# # Teach SmolLM2 to translate
#
# SmolLM2 was trained on English. How far does it come in another language with some
# hundred examples? The pairs are what programs say to their users: Django carries its
# messages in a hundred languages.

# %% tags=["parameters"]
MODEL = "smollm2"
LANGUAGE = "de"  # as Django names it: de, fr, es, it, nl, pt_BR, ...
TRAIN, TEST = 600, 60  # examples
MAX_NEW_TOKENS = 40

# %% [markdown]
# ## Examples
#
# Messages without placeholders and markup, short ones: `source`, `target`, and the
# codes of the two languages.

# %%
import json
import random
import re
from importlib.util import find_spec
from pathlib import Path

import matplotlib.pyplot as plt
from babel.messages.mofile import read_mo

import keras_gpt
from keras_gpt import evaluation, runs

[django] = find_spec("django").submodule_search_locations
translations = {}
for path in sorted(Path(django).rglob(f"{LANGUAGE}/LC_MESSAGES/*.mo")):
    with path.open("rb") as file:
        for message in read_mo(file):
            if isinstance(message.id, str) and message.id:
                translations[message.id] = message.string


def is_plain(text):
    """Whether a text is some words, without markup and what is filled in."""
    return 2 <= len(text.split()) <= 20 and not re.search(r"[%{}<>&\n]", text)


pairs = [
    {
        "source": source,
        "target": target,
        "source_language": "en",
        "target_language": LANGUAGE.partition("_")[0],
    }
    for source, target in translations.items()
    if is_plain(source) and is_plain(target) and source != target
]
random.Random(0).shuffle(pairs)
test, train = pairs[:TEST], pairs[TEST : TEST + TRAIN]
Path("data").mkdir(exist_ok=True)
for name, records in {"train": train, "test": test}.items():
    lines = "\n".join(map(json.dumps, records))
    Path(f"data/{name}.jsonl").write_text(lines, encoding="utf-8")
print(f"{len(train)} to learn from, {len(test)} to judge by")
for pair in test[:3]:
    print(f"  {pair['source']}  ->  {pair['target']}")

# %% [markdown]
# ## Before and after
#
# BLEU counts words and runs of words that are those of the reference, chrF counts runs
# of characters and so gives credit for half a word. Both go to 100. With so few texts
# they are rough.

# %%
sources = [pair["source"] for pair in test]
references = [pair["target"] for pair in test]
target = test[0]["target_language"]


def translate(lm):
    """Translations of the texts that aren't taught, greedy."""
    return lm.translate(
        sources, MAX_NEW_TOKENS, source="en", target=target, batch_size=16
    )


lm = keras_gpt.LanguageModel.from_pretrained(MODEL)
written = {"the English text": sources, "before": translate(lm)}

# %%
tuned = runs.finetune(
    runs.FinetuneConfig(
        model=MODEL,
        data="data/train.jsonl",
        output="runs/translations",
        epochs=2,
        batch_size=2,
        sample_tokens=0,
    )
)
written["after"] = translate(tuned)

# %%
scores = {
    name: evaluation.score_translations(texts, references, target=target)
    for name, texts in written.items()
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for axis, metric in zip(axes, ("bleu", "chrf"), strict=True):
    values = [score.scores[metric] for score in scores.values()]
    bars = axis.barh(list(scores), values, color=["#bbb", "#bbb", "#d62"])
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.set_xlim(right=1.2 * max(values) + 1)
    axis.set_title({"bleu": "BLEU", "chrf": "chrF"}[metric])
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# Is the gain more than chance? The interval is that of the difference, text by text,
# over samples of the texts: without 0 in it, it is.

# %%
gain = evaluation.bootstrap_interval(
    scores["after"].by_text["chrf"], scores["before"].by_text["chrf"]
)
print(f"chrF of a text: {gain.mean:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})")
for i in range(min(6, TEST)):
    print(f"\n{sources[i]}\n  wanted: {references[i]}")
    for name in ("before", "after"):
        print(f"  {name}: {' '.join(written[name][i].split())}")

# %% [markdown]
# It learned the words of short messages, and the manner of the language. A good
# translator needs more examples, and a model that has read the language:
# `MODEL = "hf://Qwen/Qwen3-0.6B"` with a GPU, for example.

# %%
lm = keras_gpt.LanguageModel.load("runs/translations")
print(lm.translate("Please enter a valid name.", source="en", target=target))
