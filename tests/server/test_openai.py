"""The server, asked by the `openai` package itself."""

import asyncio
import re
import socket
import typing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pydantic
import pytest
import requests

from keras_gpt.server import Settings
from keras_gpt.server.app import make_app
from keras_gpt.tf_serving import Client, ServingError
from tests.server.conftest import make_client, serve, wait_until
from tests.tiny import make_lm

HI = [{"role": "user", "content": "hi"}]
ENDLESS = {"model": "tiny", "prompt": "hello", "max_tokens": 1000}


def ask(client, **fields):
    return client.completions.create(**{"model": "tiny", "prompt": "hello", **fields})


def chat(client, **fields):
    return client.chat.completions.create(**{"model": "tiny", "messages": HI, **fields})


def as_json(schema):
    """A `response_format`."""
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}


def is_idle(server):
    scheduler = server.app.state.service.scheduler
    return not scheduler.num_running and not scheduler.num_waiting


def test_models_are_listed_and_others_are_not_found(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "keras_gpt"
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-5")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_adapters_are_models_of_their_own():
    lm = make_lm()
    lm.model.add_adapters({"loud": 2, "curt": 1}, ["up_projection"])
    random = np.random.default_rng(1)
    for weight in lm.model.adapters.weights:
        weight.assign(random.normal(size=weight.shape))
    lm.adapters = {"loud": {}, "curt": {"stop_ids": (1, 2, 3, 4)}}
    names = ["tiny", "loud", "curt"]
    models = [lm, lm.with_adapter("loud"), lm.with_adapter("curt")]
    texts = [model.generate("hello", 12, temperature=0) for model in models]
    [scores] = {tuple(models[1].score("hello"))}
    answers = [model.chat(HI, 12, temperature=0) for model in models]
    assert len(set(texts)) == 3
    with serve(lm, num_slots=4) as server, make_client(server) as client:
        assert [model.id for model in client.models.list()] == names
        options = {"max_tokens": 12, "temperature": 0}
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda n: ask(client, model=n, **options), names * 2))
        assert [answer.choices[0].text for answer in found] == texts * 2
        assert [answer.model for answer in found] == names * 2
        for name, answer in zip(names, answers, strict=True):
            [choice] = chat(client, model=name, **options).choices
            assert choice.message.content == answer
        with pytest.raises(openai.NotFoundError, match="has 'tiny', 'loud', 'curt'"):
            ask(client, model="calm")
        body = {"model": "loud", "prompt": "hello"}
        tokens = requests.post(f"{server.address}/inspect/tokens", json=body).json()
        likely = [token["probability"] for token in tokens["tokens"][1:]]
        assert likely == pytest.approx(np.exp(scores), rel=1e-3)  # float32
        prompts, greedy = ["hello"] * 3, {"max_new_tokens": 12, "temperature": 0}
        with Client(server.address, model="loud", retries=0) as loud:
            assert loud.generate("hello", **greedy) == texts[1]
        with Client(server.address, model="tiny", retries=0) as every:
            chosen = ["", "loud", "curt"]
            assert every.generate(prompts, adapter=chosen, **greedy) == texts
            with pytest.raises(ServingError, match="'adapter' must be empty or one"):
                every.generate(prompts, adapter="calm")
            with pytest.raises(ValueError, match="or one for each of the 3 prompts"):
                every.generate(prompts, adapter=["loud"])
    lm.adapters["tiny"] = lm.adapters.pop("loud")
    with pytest.raises(ValueError, match="another name than the model"):
        make_app(lm, Settings(name="tiny"))


def test_a_completion_is_what_the_model_writes(client, lm):
    controls = {"temperature": 1.0, "seed": 5, "top_p": 0.9}
    found = ask(client, max_tokens=12, logprobs=3, **controls)
    expected = lm.complete("hello", 12, **controls)[0]
    [choice] = found.choices
    assert (choice.text, choice.finish_reason) == (expected.text, "length")
    assert choice.logprobs.token_logprobs == pytest.approx(
        expected.log_probs, abs=1e-5
    )  # another batch sums in another order
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, others in zip(
        choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True
    ):
        assert token in others
        assert len(others) in (3, 4)  # with the token itself
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 12)
    assert usage.total_tokens == 17


def test_prompts_of_all_forms_get_n_answers_each(client, lm):
    for prompt in (["hello", "12"], [lm.tokenizer.encode(p) for p in ("hello", "12")]):
        found = ask(
            client, prompt=prompt, n=2, seed=3, max_tokens=6, temperature=1, echo=True
        )
        expected = lm.generate(
            ["hello", "12"], 6, temperature=1, seed=3, num_return_sequences=2
        )
        texts = [choice.text for choice in found.choices]
        echoes = ["hello", "hello", "12", "12"]
        assert texts == [e + text for e, text in zip(echoes, expected, strict=True)]
        assert found.usage.prompt_tokens == 7
    [choice] = ask(client, prompt=lm.tokenizer.encode("12"), n=1, seed=5).choices
    assert choice.text == lm.generate("12", 16, seed=5)


def test_a_chat_is_answered_and_an_answer_can_be_sent_back(client, lm):
    greedy = {"max_tokens": 9, "temperature": 0}
    message = chat(client, **greedy).choices[0].message
    assert message.content == lm.chat(HI, 9, temperature=0)
    parts = [{"type": "text", "text": "o"}, {"type": "text", "text": "h"}]
    second = [*HI, message, {"role": "user", "content": parts}]
    asked = {"messages": second, "logprobs": True, "top_logprobs": 3}
    answer = chat(client, **asked, **greedy)
    as_text = [*HI, message.to_dict(), {"role": "user", "content": "oh"}]
    assert answer.choices[0].message.content == lm.chat(as_text, 9, temperature=0)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 9
    for token in tokens:  # a greedy answer has the likeliest of each place
        first, *others = token.top_logprobs
        assert (first.token, first.logprob) == (token.token, token.logprob)
        assert len(others) == 2
        assert first.logprob > others[0].logprob > others[1].logprob
    events = list(chat(client, stream=True, **asked, **greedy))
    streamed = [t for e in events[1:] for t in e.choices[0].logprobs.content]
    assert streamed == tokens


def test_a_stop_string_ends_the_text_before_it(client, lm):
    text = lm.generate("hello", 30, temperature=0)
    stop = text[10:13]
    found = ask(client, max_tokens=30, temperature=0, stop=[stop])
    assert found.choices[0].text == text[: text.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == text.index(stop) + len(stop)


def test_a_bias_and_penalties_change_what_is_chosen(client, lm):
    [wanted] = lm.tokenizer.encode("q")
    greedy = {"max_tokens": 5, "temperature": 0}
    found = ask(client, logit_bias={str(wanted): 100}, **greedy)
    assert found.choices[0].text == "qqqqq"
    found = ask(client, logit_bias={str(wanted): 9}, frequency_penalty=2, **greedy)
    assert 0 < found.choices[0].text.count("q") < 5
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        ask(client, logit_bias={"999": 1})


class Found(pydantic.BaseModel):
    letters: list[typing.Literal["a", "b", "c"]] = pydantic.Field(max_length=3)
    number: int = pydantic.Field(ge=10, le=99)


def test_an_answer_has_the_form_that_is_asked_for(client, lm):
    fields = {"model": "tiny", "messages": HI, "max_tokens": 99, "seed": 5}
    found = client.chat.completions.parse(response_format=Found, **fields)
    assert isinstance(found.choices[0].message.parsed, Found)
    schema = Found.model_json_schema()
    found = chat(client, response_format=as_json(schema), n=2, **fields)
    texts = [choice.message.content for choice in found.choices]
    assert texts == [lm.chat(HI, 99, schema=schema, seed=seed) for seed in (5, 6)]
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    forms = {"regex": "[a-c]{3}"}, {"choices": ["abc"]}
    for text in [ask(client, extra_body=form).choices[0].text for form in forms]:
        assert re.fullmatch("[a-c]{3}", text)
    found = ask(client, max_tokens=4, extra_body={"response_format": as_json(schema)})
    assert found.choices[0].finish_reason == "length"  # which says that it isn't whole


def test_a_stream_is_the_same_text_with_usage_at_its_end(client):
    fields = {"n": 2, "seed": 1, "temperature": 1, "max_tokens": 11}
    whole = chat(client, **fields)
    events = list(
        chat(client, stream=True, stream_options={"include_usage": True}, **fields)
    )
    texts = ["", ""]
    for event in events[:-1]:
        [choice] = event.choices
        texts[choice.index] += choice.delta.content
        assert event.usage is None
    assert texts == [choice.message.content for choice in whole.choices]
    assert events[-1].usage.completion_tokens == whole.usage.completion_tokens == 22
    assert {event.id for event in events} == {events[0].id}


def test_many_asynchronous_clients_each_get_their_own_answer(server, lm):
    prompts = [f"{number} bottles" for number in range(8)]

    async def ask_all():
        address = f"{server.address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="none") as client:

            async def ask_one(prompt, seed):
                stream = await ask(client, prompt=prompt, stream=True, seed=seed)
                return "".join([event.choices[0].text async for event in stream])

            return await asyncio.gather(*map(ask_one, prompts, range(8)))

    assert asyncio.run(ask_all()) == lm.generate(prompts, 16, seed=0)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": as_json({"not": {}})}, "response_format"),
        ({"response_format": as_json({}), "stop": "a"}, "response_format"),
        ({"extra_body": {"regex": "a("}}, "regex"),
        ({"extra_body": {"regex": "(ab|cd)X"}}, None),
        ({"extra_body": {"choices": []}}, "choices"),
        ({"logit_bias": {"1": 200}}, "logit_bias"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"extra_body": {"frobnicate": 1}}, "frobnicate"),
        (
            {"extra_body": {"messages": [{"role": "x", "content": ""}]}},
            "messages.0.role",
        ),
        ({"extra_body": {"messages": "hi"}}, "messages"),
        ({"extra_body": {"max_tokens": True}}, "max_tokens"),
        ({"extra_body": {"stream_options": {}}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "a" * 99}]}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"seed": -1}, "seed"),
        ({"n": 1000}, "n"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"max_completion_tokens": 1001}, "max_tokens"),
    ],
)
def test_what_is_wrong_or_not_supported_is_refused_by_name(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_what_asks_for_nothing_is_no_reason_to_refuse(client):
    chat(
        client,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        presence_penalty=0,
        frequency_penalty=0.0,
        logit_bias={},
        user="me",
        max_tokens=1,
        extra_body={"top_k": 0, "min_p": 0.1, "best_of": None},
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/completions", "{", 400),
        ("POST", "/v1/completions", '{"prompt": "\\ud800"}', 400),
        ("POST", "/v1/completions", '{"prompt": "a", "\\ud800": 1}', 400),
        ("POST", "/v1/completions", '{"prompt": "a", "temperature": NaN}', 400),
        ("POST", "/v1/completions", '{"prompt": "ABC"}', 400),  # not in the alphabet
        ("POST", "/v1/completions", '{"prompt": [9999]}', 400),
        ("POST", "/v1/completions", "[" * 100_000, 400),
        ("POST", "/v1/completions", "a" * 2**21, 413),
        ("GET", "/v1/completions", None, 405),
        ("POST", "/v1/nothing", "{}", 404),
        ("GET", "/v1/models/../../etc/passwd", None, 404),
    ],
)
def test_every_error_has_openais_form(server, method, path, body, status):
    headers = {"Content-Type": "application/json", "X-Request-Id": "mine"}
    answer = requests.request(method, server.address + path, data=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.headers["X-Request-Id"] == "mine"


def test_a_body_that_does_not_say_its_size_is_not_read_to_its_end(server):
    sent = []

    def pieces():
        for _ in range(1000):
            sent.append(1)
            yield b" " * 2**16

    try:
        answer = requests.post(f"{server.address}/v1/completions", data=pieces())
        assert answer.status_code == 413
    except requests.ConnectionError:  # it was closed while we sent
        pass
    assert len(sent) < 1000


def test_other_hosts_and_other_sites_pages_are_refused(server):
    address = f"{server.address}/v1/models"
    answer = requests.get(address, headers={"Host": "evil.example"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "host_not_allowed"
    for host in ("localhost:1", "[::1]:1", "LOCALHOST"):
        assert requests.get(address, headers={"Host": host}).status_code == 200
    answer = requests.get(address, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_client_that_goes_away_frees_its_slots(server, client):
    with ask(client, n=2, max_tokens=1000, stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: is_idle(server))
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.1), n=2, max_tokens=1000)
    wait_until(lambda: is_idle(server))


def test_a_client_that_goes_away_amid_its_request_is_no_failure(server, caplog):
    head = "POST /v1/models/tiny:predict HTTP/1.1\r\nHost: localhost\r\n"
    port = int(server.address.rpartition(":")[2])
    with caplog.at_level("INFO", "keras_gpt.server"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        wait_until(lambda: caplog.records)
    assert [record.status for record in caplog.records] == [499]


def test_a_full_queue_says_when_to_come_again(server, client):
    with ask(client, n=8, max_tokens=1000, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
        assert caught.value.response.headers["Retry-After"] == "1"
        assert caught.value.code == "queue_full"
    wait_until(lambda: is_idle(server))


def test_metrics_count_and_the_log_has_the_request(server, client, caplog):
    def read():
        lines = requests.get(f"{server.address}/metrics").text.splitlines()
        return {
            name: float(value)
            for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")
        }

    before = read()
    with caplog.at_level("INFO", "keras_gpt.server"):
        ask(client, max_tokens=7, extra_headers={"X-Request-Id": "abc"})
        wait_until(lambda: caplog.records)
    after = read()
    name = 'keras_gpt_requests_total{route="/v1/completions",status="200"}'
    assert after[name] == before[name] + 1
    name = "keras_gpt_new_tokens_total"
    assert after[name] == before[name] + 7
    [record] = [r for r in caplog.records if r.request_id == "abc"]
    assert (record.status, record.completion_tokens) == (200, 7)
