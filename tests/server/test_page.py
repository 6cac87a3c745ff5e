"""The page: its routes, and itself in a real browser."""

import re
import shutil

import keras
import numpy as np
import pytest
import requests

from keras_gpt import GPT, CharacterTokenizer, GPTConfig, LanguageModel
from keras_gpt.tokenizers import ChatTemplate
from keras_gpt.training.callbacks import EventLog
from keras_gpt.training.lora import LORA_TARGETS
from tests.server.conftest import serve, wait_until
from tests.tiny import LETTERS, TEMPLATE

CHAT = [{"role": "user", "content": "hi"}]
TAG = "<script>"


def inspect(server, what, **fields):
    answer = requests.post(f"{server.address}/inspect/{what}", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_page_may_do_nothing_but_ask_this_server(server):
    for path in ("/", "/page/page.css", "/page/page.js"):
        answer = requests.get(server.address + path)
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        links = re.findall(r"(?:https?:)?//[\w.]+\.\w+", answer.text)
        assert set(links) <= {"http://www.w3.org"}  # the name of SVG, no address
    for path in ("/page/", "/page/..%2fapp.py", "/page/app.py"):
        assert requests.get(server.address + path).status_code == 404
    # a link of another page may lead to it, but not further
    other = {"Sec-Fetch-Site": "cross-site"}
    assert requests.get(server.address, headers=other).status_code == 200
    path = f"{server.address}/inspect/model"
    assert requests.get(path, headers=other).status_code == 403


def test_alternatives_are_what_the_model_finds_likely(server, lm):
    prompt, completion = "hello", " wörld".replace("ö", "é")
    found = inspect(server, "tokens", prompt=prompt, completion=completion)
    tokens = found["tokens"]
    assert "".join(token["text"] for token in tokens) == prompt + completion
    assert found["num_given"] == len(prompt)
    scores = lm.score(prompt + completion)
    probabilities = [token["probability"] for token in tokens[1:]]
    assert probabilities == pytest.approx(np.exp(scores), rel=1e-4)  # summed otherwise
    for i, token in enumerate(tokens[1:], 1):
        likely = [other["probability"] for other in token["alternatives"]]
        assert len(likely) == 10
        assert likely == sorted(likely, reverse=True)
        assert sum(likely) <= 1 + 1e-5
        text = (prompt + completion)[:i]
        [best] = keras_greedy(lm, text)
        assert lm.tokenizer.vocab_size <= best or (
            token["alternatives"][0]["text"] == lm.tokenizer.token(best)
        )
    assert found["next"][0]["probability"] > found["next"][9]["probability"]


def keras_greedy(lm, text):
    logits = lm.model(np.array([lm.tokenizer.encode(text)]))
    return [int(keras.ops.argmax(logits[0, -1]))]


def test_attention_is_the_models_of_a_layer(server, lm):
    found = inspect(server, "attention", messages=CHAT, completion="oh", layer=0)
    text = "[u]hi[a]oh"
    assert "".join(found["tokens"]) == text
    assert found["num_given"] == len(text) - 2
    for head, weights in zip(
        found["weights"], lm.attention(text).weights[0], strict=True
    ):
        for i, row in enumerate(head):
            assert row == pytest.approx(weights[i, : i + 1], abs=6e-4)  # rounded
    # of a text that is too long its beginning, which doesn't depend on the rest
    long = inspect(server, "attention", prompt="hello" * 20)
    assert (len(long["tokens"]), long["num_left_out"]) == (64, 36)
    path = f"{server.address}/inspect/attention"
    for wrong in (
        {"prompt": "a", "layer": 1},
        {"prompt": "ABC"},
        {"prompt": "a", "completion": "\ud800"},
        {"prompt": "a", "messages": CHAT},
        {},
    ):
        answer = requests.post(path, json=wrong)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"]


def write_run(folder):
    """What a run of two validations leaves in its folder."""
    (folder / "run.yaml").write_text("steps: 40\n")
    rows = ["epoch,loss,step,val_loss", "0,3.5,10,3.25", "1,2.5,20,2.25"]
    (folder / "log.csv").write_text("\r\n".join([*rows, ""]))
    (folder / "steps.csv").write_text("step,loss\n5,4.0\n10,3.0\n20,nan\n")
    samples = iter(["once\nupon", f"{TAG}alert(1)</script>"])
    events = EventLog(folder / "events" / "mine", sample=lambda: next(samples))
    for epoch, step in enumerate((10, 20)):
        events.on_epoch_end(epoch, {"step": step, "loss": 1.0})
    events.on_train_end()


def make_writer_of_tags():
    """A model whose likeliest text is the tag over and over, but by an adapter."""
    tokenizer = CharacterTokenizer("".join({*LETTERS, *TAG}))
    size = tokenizer.vocab_size
    width = size + size % 2
    config = GPTConfig(
        vocab_size=size,
        context_length=64,
        embedding_dimension=width,
        num_layers=2,
        num_heads=2,
        position_embedding="none",
        tie_embeddings=False,
    )
    model = GPT(config)
    ids = tokenizer.encode(TAG)
    after = np.full(size, ids[0])  # what isn't in the tag
    after[ids] = np.roll(ids, -1)
    values = {
        "embedding/tokens/embeddings": np.eye(size, width),
        "embedding/tokens/reverse_embeddings": 4
        * np.pad(np.eye(size)[after], [[0, width - size], [0, 0]]),
    }
    for variable in model.trainable_variables:
        default = np.full(variable.shape, float(variable.path.endswith("gamma")))
        variable.assign(values.get(variable.path, default))
    model.add_adapters({"other": 2}, LORA_TARGETS)
    random = np.random.default_rng(0)
    for weight in model.adapters.weights:
        weight.assign(random.normal(size=weight.shape))
    adapters = {"other": {"chat_template": None}}
    template = ChatTemplate(TEMPLATE)
    return LanguageModel(model, tokenizer, chat_template=template, adapters=adapters)


@pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="needs Chromium",
)
def test_the_page_writes_stops_chats_and_looks_into_texts(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    lm = make_writer_of_tags()
    other = lm.with_adapter("other")
    otherwise = other.generate("oh", 16, temperature=0)
    most = other.attention(f"oh{otherwise}").weights[0, 0, -1].max()
    write_run(tmp_path)
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--window-size=1280,900"):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    settings = {"num_slots": 2, "api_key": "secret", "run": tmp_path}
    with (
        serve(lm, **settings) as server,
        webdriver.Chrome(options, service) as browser,
    ):

        def find(selector):
            return browser.find_element(By.CSS_SELECTOR, selector)

        def find_all(selector):
            return browser.find_elements(By.CSS_SELECTOR, selector)

        def fill(selector, text):
            find(selector).clear()
            find(selector).send_keys(text)

        def click(element):
            """Click, like a person, on what the composer doesn't cover."""
            browser.execute_script(
                "arguments[0].scrollIntoView({block: 'center'})", element
            )
            element.click()

        def write(prompt, selector):
            """What becomes of a prompt."""
            count = len(find_all(selector))
            fill("#prompt", prompt + Keys.ENTER)
            ended = f"{selector} .bar :nth-child(3)"  # a button that comes at last
            wait_until(lambda: len(find_all(ended)) > count)
            return find_all(f"{selector} .text > span:last-child")[-1].text

        browser.get(server.address)
        wait_until(find("#key-form").is_displayed)
        fill("#key", "secret" + Keys.ENTER)
        wait_until(find("#modes").is_displayed)
        assert find("#name").text == "tiny"
        find("[data-mode=prompt]").click()
        # what the model writes is text, at temperature 0 the likeliest
        fill("#max_tokens", "16")
        fill("#temperature", "0")
        num_scripts = len(find_all("script"))
        assert write("oh", "#of-prompt article") == TAG * 2
        assert "16 tokens" in find(".stats").text
        fill("#temperature", "5")
        assert write("oh", "#of-prompt article") != TAG * 2
        # a long text is stopped
        fill("#max_tokens", "2000")
        fill("#temperature", "0")
        fill("#prompt", "oh" + Keys.ENTER)
        wait_until(lambda: len(find_all("#of-prompt article .text > span")) == 6)
        written = find_all("#of-prompt article .text > span:last-child")[-1]
        wait_until(lambda: written.text)
        find("#prompt").send_keys(Keys.ESCAPE)
        wait_until(find("#send").is_displayed)
        assert TAG.startswith(written.text[:8])
        assert len(written.text) < 2000
        # a click on the text shows the alternatives of its tokens
        click(find_all("#of-prompt article .text")[0])
        wait_until(lambda: find_all(".alternatives li"))
        assert [token.text for token in find_all(".token")[:4]] == [*"oh<s"]
        click(find_all(".token")[3])
        assert find(".alternatives li.is-chosen code").text == "s"
        assert len(find_all(".alternatives li")) == 10
        find_all(".token")[3].send_keys(Keys.ARROW_RIGHT)
        assert find(".alternatives li.is-chosen code").text == "c"
        click(find_all(".bar button")[1])
        wait_until(lambda: find_all(".heads canvas"))
        assert len(find_all(".attention .token")) == 18
        find(".heads [aria-checked=true]").send_keys(Keys.ARROW_RIGHT)
        assert find(".heads [aria-checked=true]").text == "1"
        # light and dark
        for theme in ("light", "dark"):
            find("#theme").click()
            colour = find("body").value_of_css_property("background-color")
            assert (int(re.findall(r"\d+", colour)[0]) < 128) == (theme == "dark")
        # in training
        assert "best 2.250" in find("#curve-about").text
        assert len(find_all("#curve polyline")) == 2
        assert find("#sample").text == f"{TAG}alert(1)</script>"
        with (tmp_path / "log.csv").open("a") as log:
            log.write("2,2.0,30,1.75\r\n")
        browser.execute_script("showRun()")  # as it does every some seconds
        wait_until(lambda: "best 1.750" in find("#curve-about").text)
        assert len(find_all("#curve circle")) == 3
        # a conversation
        find("[data-mode=chat]").click()
        fill("#max_tokens", "8")
        assert write("hi", "#of-chat article") == TAG
        assert write("oh", "#of-chat article") == TAG
        assert [asked.text for asked in find_all(".of-chat .asked")] == ["hi", "oh"]
        # by an adapter, without a template, chosen by the keyboard alone
        find("#model").send_keys("o")
        assert not find("#modes").is_displayed()
        assert browser.switch_to.active_element == find("#model")
        fill("#max_tokens", "16")
        assert write("oh", "#of-prompt article") == otherwise
        last = "#of-prompt article:last-child "
        assert find(f"{last} .stats").text.startswith("other · 16 tokens")
        find("#model").send_keys("t")  # an answer is looked into with its own model
        wait_until(find("#modes").is_displayed)
        click(find(f"{last} button:nth-of-type(2)"))
        wait_until(lambda: find_all(f"{last} .heads canvas"))
        assert f"{100 * most:.0f} %" in find(f"{last} .attention p").text
        # a telephone scrolls to the end of the answer, not to the run below it
        phone = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
        write("oh", "#of-prompt article")
        end, composer = find(f"{last} .bar").rect, find("#composer").rect
        assert end["y"] + end["height"] < composer["y"]
        bottom = browser.execute_script("return scrollY + innerHeight")
        assert composer["y"] + composer["height"] < bottom < find("#curve").rect["y"]
        # a refusal is said in plain words
        fill("#prompt", "ABC" + Keys.ENTER)
        wait_until(find("#error").is_displayed)
        assert "not in" in find("#error").text
        assert len(find_all("script")) == num_scripts
        seen = [line["message"] for line in browser.get_log("browser")]
        assert all(" 400 " in line or " 401 " in line for line in seen), seen
