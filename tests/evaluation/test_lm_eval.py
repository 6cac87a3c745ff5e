"""lm-eval on our model and, with the same weights, on its own for Transformers."""

import functools
import itertools
import json
import re
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

import keras_gpt_cli
from keras_gpt import (
    GPT,
    BytePairTokenizer,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
)
from keras_gpt.data.embedded import embedded_corpus
from keras_gpt.evaluation import lm_eval_model
from keras_gpt.tokenizers import ChatTemplate

lm_eval = pytest.importorskip("lm_eval", reason="pip install lm-eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

START, END, STOP = "<s>", "<|endoftext|>", "<|stop|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}<|stop|>"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
SIZES = {
    "vocab_size": 420,  # more than the tokenizer has
    "context_length": 64,
    "embedding_dimension": 32,
    "num_layers": 2,
    "num_heads": 4,
}
LLAMA = {
    "position_embedding": "rotary",
    "normalization": "rms_norm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
}


@pytest.fixture(scope="module")
def documents():
    return list(itertools.islice(embedded_corpus(), 20))


def train_tokenizer(documents):
    return BytePairTokenizer.train(
        documents, 400, special_tokens=[END, START, STOP], progress=False
    )


def put_start_first(tokenizer):
    """The tokenizer with a token before every text."""
    program = Tokenizer.from_str(tokenizer.to_json())
    program.post_processor = processors.TemplateProcessing(
        f"{START} $A", special_tokens=[(START, tokenizer.token_id(START))]
    )
    return BytePairTokenizer(program.to_str())


def make_lm(tokenizer, settings=None):
    """A model with weights so large that greedy text doesn't repeat one token."""
    model = GPT(GPTConfig(**{**SIZES, **(settings or {})}))
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        values = random.normal(scale=0.3, size=variable.shape)
        if variable.path.endswith(("/gamma", "/scale")):
            values = 1 + values / 3
        variable.assign(values.astype("float32"))
    return LanguageModel(model, tokenizer)


@pytest.fixture(scope="module")
def letters():
    """A language model of the letters alone, of which every text can be encoded."""
    tokenizer = CharacterTokenizer("abcdefghijklmnopqrstuvwxyz")
    return make_lm(tokenizer, {"vocab_size": 26, "context_length": 16})


def log_likelihoods(model, pairs):
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    return model.loglikelihood(requests, disable_tqdm=True)


def generate(model, prompts, **settings):
    requests = [
        Instance("generate_until", {}, (prompt, settings), 0) for prompt in prompts
    ]
    return model.generate_until(requests, disable_tqdm=True)


def test_continuations_have_their_scores_and_greedy_ones_are_told(letters):
    model = lm_eval_model(letters, batch_size=2)
    contexts = ["return", "a", "object", "of"]
    greedy = letters.complete(contexts, max_new_tokens=3, temperature=0.0)
    pairs = list(zip(contexts, (answer.text for answer in greedy), strict=True))
    for (log_prob, is_greedy), answer in zip(
        log_likelihoods(model, pairs), greedy, strict=True
    ):
        assert is_greedy
        # float32, computed with a cache and without
        assert log_prob == pytest.approx(sum(answer.log_probs), abs=1e-4)
    others = [
        (context, text[:2] + ("a" if text[2] != "a" else "b"))
        for context, text in pairs
    ]
    scores = letters.score([context + text for context, text in others])
    for (log_prob, is_greedy), score in zip(
        log_likelihoods(model, others), scores, strict=True
    ):
        assert not is_greedy
        # float32, other shapes of the products
        assert log_prob == pytest.approx(score[-3:].sum(), abs=1e-4)


def test_what_is_too_long_loses_its_beginning(letters):
    model = lm_eval_model(letters)
    long = "thequickbrownfoxjumps"
    [(expected, _), (found, _)] = log_likelihoods(
        model, [(long[-14:], "xyz"), (long, "xyz")]
    )
    assert found == expected
    [expected, found] = generate(model, [long[-11:], long], max_gen_toks=5)
    assert found == expected


def test_texts_end_at_stop_strings_and_stop_tokens(documents):
    lm = make_lm(train_tokenizer(documents))
    model = lm_eval_model(lm)
    [whole] = generate(model, ["Return the"], max_gen_toks=12)
    assert len(whole) > 4
    cut = whole[3:5]
    [found] = generate(model, ["Return the"], until=[cut, ""], max_gen_toks=12)
    assert found == whole[: whole.index(cut)]
    # a special token isn't written, but ends the text
    token_id = lm.complete("Return the", max_new_tokens=3, temperature=0)[0].ids[2]
    variable = lm.model.trainable_variables[0]
    assert variable.shape[0] == SIZES["vocab_size"]
    # exchanged with the stop token in the tied embedding, the model says that instead
    values = np.array(variable)
    stop_id = lm.tokenizer.token_id(STOP)
    values[[token_id, stop_id]] = values[[stop_id, token_id]]
    variable.assign(values)
    ids = lm.complete("Return the", max_new_tokens=3, temperature=0)[0].ids
    assert ids[2] == stop_id
    [found] = generate(model, ["Return the"], until=[STOP], max_gen_toks=12)
    assert found == lm.tokenizer.decode(ids[:2])


def test_samples_differ_among_repeats_but_not_among_batch_sizes(letters):
    settings = {"do_sample": True, "temperature": 2.0, "max_gen_toks": 6}
    texts = generate(lm_eval_model(letters, 4), ["abc"] * 5, **settings)
    assert len(set(texts)) == 5
    assert generate(lm_eval_model(letters, 2), ["abc"] * 5, **settings) == texts
    again = generate(lm_eval_model(letters, 4), ["abc"] * 5, **settings, seed=1)
    assert again[:4] == texts[1:]


def test_bad_requests_are_refused(letters):
    model = lm_eval_model(letters)
    with pytest.raises(ValueError, match="Give lm_eval_model a `prefix_token_id`"):
        log_likelihoods(model, [("", "abc")])
    assert log_likelihoods(lm_eval_model(letters, prefix_token_id=0), [("", "bc")]) == (
        log_likelihoods(model, [("a", "bc")])
    )
    for text in ("", "thequickbrownfoxjumps"):
        with pytest.raises(ValueError, match=f"context, 16. Received: {len(text)} tok"):
            log_likelihoods(model, [("a", text)])
    with pytest.raises(ValueError, match="max_gen_toks=16, context_length=16"):
        generate(model, ["a"], max_gen_toks=16)
    with pytest.raises(ValueError, match="has no chat template"):
        model.apply_chat_template([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="batch_size='auto'"):
        lm_eval_model(letters, "auto")
    with pytest.raises(ValueError, match="Received: prefix_token_id=26"):
        lm_eval_model(letters, prefix_token_id=26)


def test_without_lm_eval_the_error_tells_what_to_install(letters, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install .keras-gpt\[lm-eval\]"):
        lm_eval_model(letters)


@pytest.fixture
def evaluate(monkeypatch, capfd):
    """Run `keras-gpt evaluate`; returns status, output and errors."""
    few = functools.partial(TaskManager, include_defaults=False)  # the others take 10 s
    monkeypatch.setattr("lm_eval.tasks.TaskManager", few)

    def evaluate(*words):
        monkeypatch.setattr(sys, "argv", ["keras-gpt", "evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as raised:
            keras_gpt_cli.main()
        return raised.value.code, *capfd.readouterr()

    return evaluate


def test_the_command_names_a_task_that_lm_eval_lacks(letters, tmp_path, evaluate):
    letters.save(tmp_path / "model")
    status, _, errors = evaluate(tmp_path / "model", "--task", "hellaswig")
    assert status == 2
    assert "Error: lm-eval has no task 'hellaswig'" in errors


def test_the_command_asks_a_tuned_model_as_it_was_tuned(letters, tmp_path, evaluate):
    template = "{% for m in messages %}u{{ m.content }}{% endfor %}za"
    LanguageModel(
        letters.model,
        letters.tokenizer,
        chat_template=ChatTemplate(template),
        tasks={"complete": {}},
    ).save(tmp_path / "model")
    [task, *_] = make_tasks(tmp_path, ["a"] * 4)
    task |= {"target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    questions, choices = ["fox", "dog", "cat", "hen", "cow"], ["jump", "sits"]
    rows = [{"question": q, "choices": choices, "answer": 0} for q in questions]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "choices.yaml").write_text(json.dumps(task))
    shares = []
    for prompt in ("{}", "u{}za"):
        scores = [
            [letters.score(prompt.format(q) + c)[-4:].sum() for c in choices]
            for q in questions
        ]
        shares.append(float(np.mean([first > second for first, second in scores])))
    assert shares[0] != shares[1]
    command = ("--task", tmp_path / "choices.yaml")
    _, output, errors = evaluate(tmp_path / "model", *command)
    assert "The model is asked as messages, as it was tuned; --raw" in errors
    assert re.search(rf"^ *acc +{shares[1]}", output, re.MULTILINE)


def make_tasks(folder, documents):
    """One task of each kind, read from files as lm-eval's own are."""
    questions = [
        {
            "question": f"What is {number} of it? " * (number % 3),  # none for some
            "choices": ["one thing", "another" + " long" * number, "x"],
            "answer": number % 3,
        }
        for number in range(7)
    ]
    # too long for the context
    questions.append({**questions[1], "question": documents[0][:600]})
    texts = [{"text": documents[n][:size]} for n, size in enumerate((5, 90, 250, 600))]

    def task(name, rows, **settings):
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(path)},
                "cache_dir": str(folder / "cache"),
            },
            "test_split": "test",
            **settings,
        }

    return [
        task(
            "choices",
            questions,
            output_type="multiple_choice",
            doc_to_text="{{question}}",
            doc_to_target="answer",
            doc_to_choice="choices",
            metric_list=[{"metric": "acc"}, {"metric": "acc_norm"}],
        ),
        task(
            "rolling",
            texts,
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="text",
            metric_list=[{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
        ),
        task(
            "until",
            questions,
            output_type="generate_until",
            doc_to_text="Q: {{question}}",
            doc_to_target="{{choices[0]}}",
            generation_kwargs={"until": ["e", STOP], "max_gen_toks": 12},
            metric_list=[{"metric": "exact_match"}],
        ),
        task(
            "continued",
            questions[:4],
            output_type="generate_until",
            doc_to_text="Q: {{question}}",
            doc_to_target="{{choices[0]}}",
            gen_prefix="A: it",
            generation_kwargs={"until": ["e"], "max_gen_toks": 12},
            metric_list=[{"metric": "exact_match"}],
        ),
    ]


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_results_equal_those_of_the_adapter_for_transformers(case, documents, tmp_path):
    huggingface = pytest.importorskip(
        "lm_eval.models.huggingface", reason='pip install "lm-eval[hf]"'
    )
    if case == "gpt2":
        lm = make_lm(train_tokenizer(documents))
    else:
        lm = make_lm(put_start_first(train_tokenizer(documents)), LLAMA)
        lm.chat_template = ChatTemplate(CHAT_TEMPLATE, {"bos_token": START})
    lm.save_huggingface(tmp_path / "model")
    theirs = huggingface.HFLM(
        pretrained=str(tmp_path / "model"), device="cpu", dtype="float32", batch_size=4
    )
    ours = lm_eval_model(lm, batch_size=4)
    assert ours.prefix_token_id == theirs.prefix_token_id
    for apply_chat_template in [False] if case == "gpt2" else [False, True]:
        found, expected = (
            lm_eval.simple_evaluate(
                model,
                tasks=make_tasks(tmp_path, documents),
                task_manager=TaskManager(include_defaults=False),
                apply_chat_template=apply_chat_template,
                bootstrap_iters=0,
            )
            for model in (ours, theirs)
        )
        assert_alike(found["results"], expected["results"])
        for name, samples in expected["samples"].items():
            for one, other in zip(found["samples"][name], samples, strict=True):
                assert one["arguments"] == other["arguments"]
                assert_alike(one["resps"], other["resps"])


def assert_alike(found, expected):
    """Numbers to 1e-4 (float32 sums, logits of order 10), all else exactly."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-4)
    else:
        assert found == expected
