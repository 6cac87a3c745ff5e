import json

import pytest

from keras_gpt import GPT, BytePairTokenizer, GPTConfig, LanguageModel, tasks, training
from keras_gpt.tasks.cutting import cut
from keras_gpt.tokenizers import ChatTemplate

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The module reads a file. It returns a list of lines.\n\nEach line is a string."


@pytest.fixture(scope="module")
def model():
    """A tiny GPT for the tokenizer below."""
    return GPT(
        GPTConfig(
            vocab_size=512,
            context_length=96,
            embedding_dimension=8,
            num_layers=1,
            num_heads=1,
        )
    )


@pytest.fixture(scope="module")
def tokenizer():
    return BytePairTokenizer.train(
        [TEXT * 3, "Guten Morgen, user assistant system"],
        320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    )


@pytest.fixture
def plain(model, tokenizer):
    return LanguageModel(model, tokenizer)


@pytest.fixture
def chat(model, tokenizer):
    return LanguageModel(
        model,
        tokenizer,
        chat_template=ChatTemplate(TEMPLATE),
        stop_ids=[tokenizer.token_id("<|im_end|>")],
    )


def split(lm, example):
    """The texts of what isn't and what is learned."""
    pairs = list(zip(example.token_ids, example.is_answer, strict=True))
    return tuple(
        lm.tokenizer.decode([i for i, is_answer in pairs if is_answer is wanted])
        for wanted in (False, True)
    )


def test_a_plain_model_learns_the_answer_and_its_end(plain):
    record = {"text": TEXT, "summary": "Read lines."}
    example, shortened = tasks.encode_record(plain, record, 96)
    assert not shortened
    assert split(plain, example) == (
        f"{TEXT}\n\nSummary:",
        " Read lines.<|endoftext|>",
    )
    record = {
        "source": "Good morning",
        "target": "Guten Morgen",
        "source_language": "en",
        "target_language": "de",
    }
    example, _ = tasks.encode_record(plain, record, 96)
    assert split(plain, example) == (
        "English: Good morning\nGerman:",
        " Guten Morgen<|endoftext|>",
    )
    example, _ = tasks.encode_record(plain, {"prompt": "a b", "completion": " c"}, 96)
    assert split(plain, example) == ("a b", " c<|endoftext|>")


def test_a_chat_model_learns_the_answer_behind_the_prompt_that_chat_gives(chat):
    record = {"text": TEXT, "summary": "Read lines."}
    example, _ = tasks.encode_record(chat, record, 96)
    prompt, answer = split(chat, example)
    assert answer == "Read lines.<|im_end|>"
    asked = f"{tasks.TASKS['summarize'].instruction}\n\n{TEXT}"
    assert prompt == (f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n")
    from keras_gpt.tokenizers import encode_chat

    messages = [{"role": "user", "content": asked}]
    ids = encode_chat(chat.chat_template, chat.tokenizer, messages, 96)
    assert example.token_ids[: len(ids)] == ids


def test_all_answers_of_a_conversation_are_learned(chat):
    messages = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "No <|im_end|> no"},
    ]
    example, _ = tasks.encode_record(chat, {"messages": messages}, 96)
    _, answers = split(chat, example)
    # what a message spells ends nothing
    assert answers == "Yes<|im_end|>No <|im_end|> no<|im_end|>"
    end = chat.tokenizer.token_id("<|im_end|>")
    assert example.token_ids.count(end) == 5


def test_too_long_prompts_are_shortened_and_answers_kept(plain, chat):
    long = TEXT * 9
    for lm in (plain, chat):
        example, shortened = tasks.encode_record(
            lm, {"text": long, "summary": "Read lines."}, 90
        )
        assert shortened
        assert 86 <= len(example.token_ids) <= 90
        prompt, answer = split(lm, example)
        assert answer.lstrip().startswith("Read lines.<|")
        assert "The module reads" in prompt  # a text's beginning is kept
    example, _ = tasks.encode_record(
        plain, {"prompt": long + "end", "completion": " c"}, 20
    )
    assert split(plain, example)[0].endswith("end")  # a prompt's end is


def test_of_a_long_conversation_the_oldest_messages_are_left_out(chat):
    messages = [{"role": "system", "content": "Short."}]
    for number in range(9):
        messages.append({"role": "user", "content": f"Question {number}?"})
        messages.append({"role": "assistant", "content": f"Answer {number}"})
    example, shortened = tasks.encode_record(chat, {"messages": messages}, 80)
    text = chat.tokenizer.decode(example.token_ids)
    assert shortened
    assert len(example.token_ids) <= 80
    assert "Short." in text
    assert "Question 0" not in text
    assert text.endswith("Answer 8<|im_end|>")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "line 2: the field 'completion' is missing"),
        ({"summary": "a"}, "line 2: the field 'text' is missing"),
        ({"x": "a"}, "line 2: a record needs the fields prompt/completion"),
        ({"prompt": "a", "completion": " "}, "line 2: the field 'completion' is empty"),
        ({"text": 3, "summary": "a"}, "line 2: the field 'text' must be a text"),
        ({"prompt": "a", "completion": "b " * 99}, "line 2: the answer and what must"),
        ({"messages": []}, "line 2: the record has messages, but"),
        ({"source": "a", "target": "b"}, "line 2: the field 'source_language' is"),
        (
            {
                "source": "a",
                "target": "b",
                "source_language": "en",
                "target_language": "german",
            },
            "line 2: Received: language='german'.* One of",
        ),
    ],
)
def test_a_bad_record_is_refused_by_its_line(plain, tmp_path, record, message):
    path = tmp_path / "train.jsonl"
    records = [{"prompt": "a", "completion": "b"}, record]
    path.write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=f"^train.jsonl, {message}"):
        tasks.read_examples(plain, path, 64)


def test_what_is_too_long_is_refused_where_nothing_may_be_shortened(plain, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"text": TEXT * 9, "summary": "a"}))
    _, about = tasks.read_examples(plain, path, 64)
    assert about["num_shortened"] == 1
    with pytest.raises(ValueError, match="line 1: the example is too long: there is"):
        tasks.read_examples(plain, path, 64, shorten=False)


def test_an_answer_that_cannot_end_is_refused(model):
    characters = BytePairTokenizer.train([TEXT], 300, special_tokens=[])
    lm = LanguageModel(model, characters)
    with pytest.raises(ValueError, match="no id that ends a text"):
        tasks.encode_record(lm, {"prompt": "a", "completion": "b"}, 64)


def count(texts):
    return list(map(len, texts))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("fits whole", ["fits whole"]),
        # an empty line before a line's end, a sentence's and a word's
        ("a b.\n\nc d. e\nf g h i", ["a b.", "\n\nc d. e", "\nf g h i"]),
        ("a b.\nc d. e f g h", ["a b.", "\nc d.", " e f g h"]),
        ("aa! bb cc dd ee ff", ["aa!", " bb cc dd", " ee ff"]),
        ("aaa bbb ccc ddd", ["aaa bbb", " ccc ddd"]),
        # the latest of the same kind, with the white space before what follows
        ("a. b. c. d e f g  h", ["a. b. c.", " d e f g", "  h"]),
        ("\u4f60\u597d\u3002" * 4, ["\u4f60\u597d\u3002" * 3, "\u4f60\u597d\u3002"]),
        ("a" * 25, ["a" * 10, "a" * 10, "a" * 5]),
        # what is too long for a part goes on from where its line began
        ("a b\n" + "c" * 12, ["a b", "\n" + "c" * 9, "ccc"]),
    ],
)
def test_texts_are_cut_at_the_best_boundary_and_join_to_what_they_were(text, parts):
    found = cut(text, count, 10)
    assert "".join(found) == text
    assert all(len(part) <= 10 for part in found)
    assert found == parts


def test_a_text_of_which_no_character_fits_is_refused():
    for most, text in ((0, ""), (-3, "a"), (1, "ab")):
        with pytest.raises(
            ValueError, match=r"Not even one character fits.*Lower max_"
        ):
            cut(text, lambda texts: [2 * len(text) for text in texts], most)


def test_long_texts_are_summarized_in_parts(chat, plain):
    chat.tasks = {"summarize": {}}
    long = TEXT * 9
    asked = []
    generate = chat.generate_from_ids

    def watch(ids, *args, **kwargs):
        asked.extend(ids)
        return generate(ids, *args, **kwargs)

    chat.generate_from_ids = watch
    progress = []
    summary, short = chat.summarize(
        [long, TEXT], max_new_tokens=8, batch_size=2, on_progress=progress.append
    )
    assert isinstance(summary, str)
    assert all(len(ids) <= 96 - 8 for ids in asked)
    text = "".join(map(chat.tokenizer.decode, asked))
    assert text.count("Each line is a string.") >= 9
    assert sum(progress) > 2
    # a text among others gives what it gives alone
    assert chat.summarize(TEXT, max_new_tokens=8) == short
    with pytest.raises(ValueError, match="can't summarize: it was neither tuned"):
        plain.summarize(TEXT)
    with pytest.raises(ValueError, match=r"`batch_size` .*batch_size=0"):
        chat.summarize(TEXT, max_new_tokens=8, batch_size=0)


def test_an_answer_ends_at_the_stop_ids_that_are_given(chat):
    messages = [{"role": "user", "content": "Hi"}]
    whole = chat.chat(messages, 8, temperature=0)
    assert chat.chat(messages, 8, temperature=0, stop_ids=range(512)) == ""
    assert chat.chat(messages, 8, temperature=0, stop_ids=[]).startswith(whole)


def test_translations_keep_the_lines_of_the_text(chat):
    chat.tasks = {"translate": {}}
    chat.generate_from_ids = lambda ids, *args, **kwargs: ["x"] * len(ids)
    text = "Good morning.\n\nThe module reads.\n" * 4
    translated = chat.translate(text, 16, source="en", target="de")
    assert translated.count("\n") == text.count("\n")


def test_languages_that_were_not_tuned_for_are_refused(chat, plain):
    chat.tasks = {"translate": {"languages": [["en", "de"]]}}
    with pytest.raises(ValueError, match="tuned to translate en to fr"):
        chat.translate("Hi", source="en", target="fr")
    chat.tasks = {}
    with pytest.raises(ValueError, match="language='xx'"):
        chat.translate("Hi", source="en", target="xx")
    with pytest.raises(ValueError, match="can't translate"):
        plain.translate("Hi", source="en", target="fr")


def test_a_model_that_was_never_tuned_for_a_task_says_so_once(chat):
    chat.tasks = {"chat": {}}
    with pytest.warns(UserWarning, match=r"never tuned to summarize.*keras-gpt fine"):
        summary = chat.summarize(TEXT, 4)
    with pytest.warns(UserWarning, match="never tuned to translate") as caught:
        chat.translate("Hi", 4, source="en", target="de")
    assert caught[0].filename == __file__
    # filters make errors of warnings
    assert chat.summarize(TEXT, 4) == summary


def test_an_adapter_brings_the_form_in_which_it_was_tuned(plain, chat, tmp_path):
    plain.save(tmp_path / "base")
    lm = LanguageModel.load(tmp_path / "base")
    training.enable_lora(lm.model, 2)
    lm.chat_template, lm.stop_ids = chat.chat_template, chat.stop_ids
    lm.tasks = {"complete": {"instruction": "Count."}}
    lm.save_adapter(tmp_path / "adapter", base=str(tmp_path / "base"))
    loaded = LanguageModel.load(tmp_path / "adapter")
    assert (loaded.chat_template, loaded.stop_ids) == (lm.chat_template, lm.stop_ids)
    assert (loaded.tasks, loaded.task) == (lm.tasks, "chat")
    # one of an earlier version takes the base's
    path = tmp_path / "adapter" / "adapter.json"
    about = json.loads(path.read_text())
    del about["chat_template"], about["stop_ids"]
    path.write_text(json.dumps(about))
    loaded = LanguageModel.load(tmp_path / "adapter")
    assert (loaded.chat_template, loaded.stop_ids) == (None, plain.stop_ids)
    assert loaded.task == "generate"


GREEDY = {"temperature": 0, "max_new_tokens": 6}


def test_a_model_answers_in_the_form_that_it_was_tuned_for(chat, plain):
    prompts = [TEXT, "One?"]

    def ask(text):
        return chat.chat([{"role": "user", "content": text}], **GREEDY)

    translated = {"languages": [["en", "de"]]}
    for tuned, task, expected in (
        ({}, "chat", ask),
        ({"complete": {}}, "chat", ask),
        ({"summarize": {}, "translate": translated}, "chat", ask),
        ({"summarize": {}}, "summarize", lambda t: chat.summarize(t, 6)),
        (
            {"translate": translated},
            "translate",
            lambda t: chat.translate(t, 6, source="en", target="de"),
        ),
    ):
        chat.tasks = tuned
        assert chat.task == task
        options = GREEDY if task == "chat" else {"max_new_tokens": 6}
        answers = [expected(text) for text in prompts]
        assert chat.answer(prompts, **options) == answers
        assert chat.answer(TEXT, **options) == answers[0]
        assert "".join(tasks.stream_answer(chat, TEXT, **options)) == answers[0]
    assert plain.task == "generate"
    assert plain.answer(prompts, seed=3) == plain.generate(prompts, seed=3)
    assert plain.answer(prompts, batch_size=1) == plain.generate(prompts)
    beams = {"num_beams": 2, "max_new_tokens": 4}
    assert plain.answer(prompts, **beams) == plain.generate(prompts, **beams)
    with pytest.raises(
        ValueError, match=r"`num_return_sequences` must be 1.*: 2\. Use"
    ):
        plain.answer(prompts, num_return_sequences=2)
    plain.tasks = {"summarize": {}}
    assert plain.answer(prompts) == plain.summarize(prompts)


def test_a_question_is_asked_as_it_was_taught(chat):
    chat.tasks = {"complete": {"instruction": "Count."}}
    example, _ = tasks.encode_record(chat, {"prompt": "a b", "completion": "c"}, 96)
    asked = []
    chat.generate_from_ids = lambda ids, *args, **options: asked.extend(ids) or ["c"]
    assert chat.answer("a b") == "c"
    assert asked == [example.token_ids[: example.is_answer.index(True)]]
    with pytest.raises(ValueError, match=r"last message is too long.*room for 48"):
        chat.answer(TEXT * 9)


def test_a_translator_takes_the_one_pair_that_it_knows(chat, plain):
    chat.tasks = {"translate": {"languages": [["en", "de"], ["de", "en"]]}}
    with pytest.raises(
        ValueError, match=r"en to de, de to en: give `source` and `target`"
    ):
        chat.answer("Hi")
    with pytest.raises(ValueError, match="`source` and `target`"):
        chat.answer("Hi", source="en")
    given = {"source": "de", "target": "en"}
    assert chat.answer("Hi", 4, **given) == chat.translate("Hi", 4, **given)
    # a short context is shared by the prompt and the answer
    plain.tasks = {"translate": {}}
    assert plain.translate("Hi", **given) == plain.translate("Hi", 48, **given)


def test_a_stopped_job_answers_what_is_left(tmp_path):
    records = [{"prompt": "a" * (i % 3), "id": i} for i in range(7)]
    asked, output = [], tmp_path / "answers" / "all.jsonl"

    def answer(places):
        if len(asked) in stops:
            stops.clear()
            raise KeyboardInterrupt
        asked.extend(places)
        return [f"{i}: {records[i]['prompt']}é\n" for i in places]

    def work(**options):
        found = {"records": records, "about": {"seed": 1}, "batch_size": 2, **options}
        texts = [record["prompt"] for record in records]
        tasks.answer_records(answer, texts, output, **found)

    for number in (0, 2, 4):
        stops = [number]
        with pytest.raises(KeyboardInterrupt):
            work()
        assert not output.exists()
    part = output.with_name(".all.jsonl.part")
    stops = []
    with pytest.raises(ValueError, match=r"\.part is of a job with other records"):
        work(about={"seed": 2})
    with part.open("a") as file:  # killed in the middle of a line
        file.write("[5, ")
    done = []
    work(on_progress=done.append)
    assert done == [4, 2, 1]
    assert sorted(asked) == list(range(7))
    assert [len(records[i]["prompt"]) for i in asked] == [2, 2, 1, 1, 0, 0, 0]
    lines = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert lines == [
        {**record, "answer": f"{i}: {record['prompt']}é\n"}
        for i, record in enumerate(records)
    ]
    assert [path.name for path in output.parent.iterdir()] == ["all.jsonl"]
    with pytest.raises(FileExistsError, match=r"all\.jsonl is there already"):
        work()
    with pytest.raises(ValueError, match="must be a file of this machine"):
        tasks.answer_records(answer, [], "s3://answers/all.jsonl", records=[])
