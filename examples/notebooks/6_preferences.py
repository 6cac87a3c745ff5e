# %% [markdown] cpu="6 min" t4="2 min"
# # Preference tuning: teach a model to be brief
#
# What makes an answer good is hard to write down, and easy to say of two: this one is
# better. DPO learns from such pairs. Here the pairs come from the model itself: it
# answers each question twice, and the shorter answer wins. After some minutes SmolLM2
# comes to the point.

# %% tags=["parameters"]
MODEL = "smollm2"
EPOCHS = 3
MAX_NEW_TOKENS = 96

# %%
import matplotlib.pyplot as plt
import numpy as np

import keras_gpt
from keras_gpt import tasks, training

lm = keras_gpt.LanguageModel.from_pretrained(MODEL)

things = ["rain", "bread", "a battery", "the moon", "a bicycle", "salt", "a library"]
things += ["sleep", "a volcano", "glass", "music", "a bank", "coffee", "the wind"]
templates = ["What is {}?", "Tell me about {}.", "Why does {} matter?"]
questions = [template.format(thing) for thing in things for template in templates]
test = questions[-9:]
train = questions[:-9]

# %% [markdown]
# ## Two answers to each question
#
# At a temperature of 1 the same question gets other answers for other seeds.


# %%
def ask(questions, **controls):
    """The model's answers, as in a chat."""
    return lm.answer(questions, MAX_NEW_TOKENS, batch_size=16, **controls)


answers = [ask(train, temperature=1.0, top_p=0.95, seed=seed) for seed in (1, 2)]
records = []
for question, *pair in zip(train, *answers, strict=True):
    chosen, rejected = sorted(pair, key=len)
    if chosen.strip() and len(chosen) < 0.9 * len(rejected):
        records.append({"prompt": question, "chosen": chosen, "rejected": rejected})
print(f"{len(records)} pairs of {len(train)}; the first:")
for field, text in records[0].items():
    print(f"  {field}: {text[:100]!r}")

# %% [markdown]
# ## DPO
#
# The model that is trained is compared with itself as it was (`reference_margins`): it
# shall find the chosen answer likelier than it did, against the rejected one, and not
# move further than that needs. A loss of ln 2 = 0.69 is to have learned nothing.

# %%
before = ask(test, temperature=0)
pairs = [tasks.encode_preference(lm, record, most=192) for record in records]
training.enable_lora(lm.model, rank=16)
margins = training.reference_margins(lm.model, pairs, sequence_length=192)
batches = training.load_preferences(pairs, margins, batch_size=2, sequence_length=192)

steps = EPOCHS * len(batches)
preferences = training.PreferenceModel(lm.model, beta=0.1)
training.compile_model(preferences, 2e-4, total_steps=steps, warmup_steps=steps // 10)
history = preferences.fit(batches, epochs=EPOCHS, shuffle=False, verbose=2).history

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(range(1, EPOCHS + 1), history["loss"], marker="o")
axes[0].axhline(np.log(2), color="#888", linestyle=":")
axes[0].set_ylabel("loss")
axes[1].plot(range(1, EPOCHS + 1), history["accuracy"], marker="o")
axes[1].axhline(0.5, color="#888", linestyle=":")
axes[1].set_ylabel("prefers the chosen answer")
for axis in axes:
    axis.set_xlabel("epoch")
    axis.set_xticks(range(1, EPOCHS + 1))
plt.show()

# %% [markdown]
# ## Is it briefer?
#
# On questions that it wasn't trained on:

# %%
after = ask(test, temperature=0)
lengths = [[len(text.split()) for text in texts] for texts in (before, after)]
place = np.arange(len(test))
plt.figure(figsize=(8, 4))
plt.barh(place - 0.2, lengths[0], 0.4, label="before", color="#bbb")
plt.barh(place + 0.2, lengths[1], 0.4, label="after", color="#d62")
plt.yticks(place, test)
plt.gca().invert_yaxis()
plt.xlabel("words in the answer")
plt.legend(frameon=False)
plt.tight_layout()
plt.show()
print(f"{np.mean(lengths[0]):.0f} words before, {np.mean(lengths[1]):.0f} after")

# %%
for question, old, new in list(zip(test, before, after, strict=True))[:3]:
    print(f"{question}\n  before: {old}\n  after:  {new}\n")

# %% [markdown]
# ## Keep it
#
# The adapter takes some MB. With it switched off, the model is what it was.

# %%
with training.without_lora(lm.model):
    print("as before:", ask(test[:1], temperature=0) == before[:1])
lm.save_adapter("runs/brief", base=MODEL)
