"""`keras-gpt serve` under load: SmolLM2-135M, several clients streaming at once.

Total tokens/s and the time to the first token, beside `lm.generate` with all prompts in
one batch, one client alone, and llama.cpp's server if its Python is given. Each greedy
answer is compared with the one that the prompt gets alone. `--soak N` instead sends N
mixed requests to a small model, a tenth of them cancelled amid their stream and a tenth
invalid, and exits with 1 if an answer is wrong or a slot is lost.
"""

import argparse
import asyncio
import contextlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import psutil
from common import count_cores, describe_machine, environment, print_table

import keras_gpt
from keras_gpt.tokenizers import ChatTemplate

WHAT = "fox tree king ship bell road wolf star book mill lake coin drum lamp rose gate"
PROMPTS = [f"Once upon a time there was a {what} that" for what in WHAT.split()]


@contextlib.contextmanager
def serving(command, health):
    """A server in a process of its own; gives its address and the process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    process = subprocess.Popen(
        [*map(str, command), "--port", str(port)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            if process.poll() is not None:
                sys.exit(f"{command} ended with {process.returncode}.")
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(address + health)
                break
            time.sleep(0.1)
        yield address, process
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


def our_server(model, slots, weights=None):
    """`keras-gpt serve` of this Python."""
    script = Path(sys.executable).parent / "keras-gpt"
    options = ["--weights", weights] if weights else []
    command = [script, "serve", model, "--name", "model", "--slots", slots, *options]
    return serving(command, "/ready")


async def stream_all(address, prompts, tokens):
    """Stream one answer a client; gives the texts, first times, and the whole time."""
    async with openai.AsyncOpenAI(
        base_url=f"{address}/v1", api_key="none", timeout=600, max_retries=0
    ) as client:

        async def stream(prompt):
            start = time.perf_counter()
            pieces, first = [], None
            async for event in await client.completions.create(
                model="model",
                prompt=prompt,
                max_tokens=tokens,
                temperature=0,
                stream=True,
            ):
                first = first or time.perf_counter() - start
                pieces += [choice.text for choice in event.choices]
            return "".join(pieces), first

        start = time.perf_counter()
        answers = await asyncio.gather(*map(stream, prompts))
        seconds = time.perf_counter() - start
    texts, firsts = zip(*answers, strict=True)
    return list(texts), list(firsts), seconds


def measure_load(options):
    """Print the table; returns whether every answer was right."""
    lm = keras_gpt.LanguageModel.from_pretrained("smollm2", dtype=options.dtype)
    if options.weights == "int8":
        lm.quantize("int8")
    prompts = (PROMPTS * options.clients)[: options.clients]
    controls = {"max_new_tokens": options.tokens, "temperature": 0}

    def count(texts):
        return sum(len(lm.tokenizer.encode(text)) for text in texts)

    def batch():
        start = time.perf_counter()
        texts = lm.generate(prompts, **controls)
        return texts, [None], time.perf_counter() - start

    is_right = True
    with contextlib.ExitStack() as stack:
        address = options.at
        if address is None:
            ours = our_server("smollm2", options.clients, options.weights)
            address, _ = stack.enter_context(ours)
        ways = {
            f"lm.generate, batch {len(prompts)}": batch,
            f"keras-gpt serve, {len(prompts)} clients": lambda: asyncio.run(
                stream_all(address, prompts, options.tokens)
            ),
            "keras-gpt serve, 1 client": lambda: asyncio.run(
                stream_all(address, prompts[:1], options.tokens)
            ),
        }
        theirs = options.llama_at
        if options.llama_cpp:
            model = next(Path(options.llama_model).glob("*.gguf"))
            command = [options.llama_cpp, "-m", "llama_cpp.server", "--model", model]
            # of its own accord it takes half of the cores
            command += ["--n_threads", count_cores()]
            theirs, _ = stack.enter_context(serving(command, "/v1/models"))
        if theirs:
            for number in (len(prompts), 1):
                ways[f"llama.cpp's server, {number} clients"] = lambda number=number: (
                    asyncio.run(stream_all(theirs, prompts[:number], options.tokens))
                )
        for way in ways.values():
            way()  # what is compiled, or read for the first time
        results = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                results[name].append(way())
    rates = {
        name: statistics.median(count(texts) / seconds for texts, _, seconds in found)
        for name, found in results.items()
    }
    whole, served, single, *_ = rates.values()
    rows = []
    for name, found in results.items():
        firsts = sorted(f for _, firsts, _ in found for f in firsts if f is not None)
        times = ["", ""]
        if firsts:
            last = firsts[-(len(firsts) // 20) - 1]
            times = [f"{1000 * s:.0f} ms" for s in (statistics.median(firsts), last)]
        rows.append([name, f"{rates[name]:.0f}", f"{rates[name] / whole:.2f}", *times])
    print_table(["", "tokens/s", "of lm.generate", "first p50", "p95"], rows)
    print(f"\n{len(prompts)} clients over one: {served / single:.2f}")
    if options.compare:
        alone = [lm.generate(prompt, **controls) for prompt in prompts]
        found = results[list(ways)[1]]
        pairs = [pair for texts, *_ in found for pair in zip(texts, alone, strict=True)]
        wrong = sum(text != expected for text, expected in pairs)
        print(f"answers other than alone: {wrong} of {len(pairs)}")
        is_right = not wrong
    return is_right


def make_small():
    """A small model that answers with random letters."""
    letters = "abcdefghijklmnopqrstuvwxyz .,"
    config = keras_gpt.GPTConfig(
        vocab_size=len(letters),
        context_length=256,
        embedding_dimension=64,
        num_layers=2,
        num_heads=4,
    )
    template = "{% for m in messages %}{{ m.role[0] }} {{ m.content }}. {% endfor %}"
    return keras_gpt.LanguageModel(
        keras_gpt.GPT(config),
        keras_gpt.CharacterTokenizer(letters),
        chat_template=ChatTemplate(template),
    )


def make_requests(lm, count, rng):
    """Requests of all kinds, each with the text that it gets alone."""
    made = []
    for i in range(count):
        prompt = "".join(rng.choices("abcdefg .", k=rng.choice((1, 20, 120))))
        fields = {"max_tokens": rng.randint(1, 60), "seed": rng.randint(0, 10**6)}
        fields["temperature"] = rng.choice((0, 0.7, 1.3))
        controls = {**fields, "max_new_tokens": fields["max_tokens"]}
        del controls["max_tokens"]
        if i % 3 == 0:
            controls["stop"] = fields["stop"] = [rng.choice("abc") + rng.choice("xyz")]
        if i % 2:
            messages = [{"role": "user", "content": prompt}]
            asked, expected = {"messages": messages}, lm.chat(messages, **controls)
        else:
            asked, expected = {"prompt": prompt}, lm.generate(prompt, **controls)
        made.append(({**fields, **asked}, expected))
    return made


INVALID = (
    {"temperature": -1},
    {"max_tokens": 10**9},
    {"stop": ""},
    {"n": 999},
    {"seed": "x"},
    {"tools": [{}]},
)


async def soak(address, process, made, options, rng):
    """Send all; returns how many were right, wrong, cancelled, refused, and memory."""
    tally = {"right": 0, "wrong": 0, "cancelled": 0, "refused": 0}
    memory = {}
    limit = asyncio.Semaphore(options.clients)
    num_done = 0
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=9)

    def create(fields):
        chats = client.chat.completions if "messages" in fields else client.completions
        return chats.create(model="model", **fields)

    def text_of(choice):
        for name in ("delta", "message"):
            if hasattr(choice, name):
                return getattr(choice, name).content
        return choice.text

    async def send(kind, fields, expected, streams):
        if kind == 0:
            try:
                await create({**fields, "extra_body": rng.choice(INVALID)})
                return "wrong"
            except openai.BadRequestError:
                return "refused"
        if kind == 1:
            fields = {**fields, "max_tokens": 200, "stream": True}
            async with await create(fields) as events:
                async for _ in events:
                    if rng.random() < 0.3:
                        break
            return "cancelled"
        if not streams:
            [choice] = (await create(fields)).choices
            return "right" if text_of(choice) == expected else "wrong"
        pieces = [
            text_of(event.choices[0])
            async for event in await create({**fields, "stream": True})
        ]
        return "right" if "".join(pieces) == expected else "wrong"

    async def one(number):
        nonlocal num_done
        async with limit:
            chosen = *made[rng.randrange(len(made))], rng.random() < 0.5
            tally[await send(number % 10, *chosen)] += 1
        num_done += 1
        for name, share in (("start", 0.1), ("middle", 0.5), ("end", 1)):
            if num_done == int(share * options.soak):
                memory[name] = psutil.Process(process.pid).memory_info().rss / 2**20

    async with client:
        await asyncio.gather(*map(one, range(options.soak)))
    return tally, memory


def run_soak(options):
    """Print what came of the requests; returns whether all is well."""
    rng = random.Random(0)
    lm = make_small()
    made = make_requests(lm, 60, rng)
    with tempfile.TemporaryDirectory() as folder:
        lm.save(Path(folder, "small"))
        with our_server(Path(folder, "small"), 8) as (address, process):
            start = time.perf_counter()
            tally, memory = asyncio.run(soak(address, process, made, options, rng))
            seconds = time.perf_counter() - start
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                text = urllib.request.urlopen(f"{address}/metrics").read().decode()
                names = ("keras_gpt_running", "keras_gpt_waiting")
                lines = [line for line in text.splitlines() if line.startswith(names)]
                if all(line.endswith(" 0.0") for line in lines):
                    break
                time.sleep(0.1)
        print(f"{options.soak} requests in {seconds:.0f} s: {tally}")
        print(f"left behind: {lines}; exit status: {process.returncode}")
        print({name: f"{size:.0f} MiB" for name, size in memory.items()})
    is_idle = all(line.endswith(" 0.0") for line in lines)
    return not tally["wrong"] and is_idle and process.returncode == 0


def main():
    """Measure, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype")
    parser.add_argument("--weights", choices=["int8"])
    parser.add_argument("--no-compare", dest="compare", action="store_false")
    parser.add_argument("--llama-cpp", metavar="PYTHON", help="with llama_cpp.server")
    parser.add_argument("--llama-model", metavar="FOLDER", help="with its .gguf file")
    parser.add_argument("--at", metavar="URL", help="of ours, if it runs already")
    parser.add_argument("--llama-at", metavar="URL", help="of llama.cpp's, if it does")
    parser.add_argument("--soak", type=int, metavar="N", help="requests")
    options = parser.parse_args()
    print(describe_machine(backend=keras_gpt.keras.backend.backend()))
    is_well = run_soak(options) if options.soak else measure_load(options)
    sys.exit(not is_well)


if __name__ == "__main__":
    main()
