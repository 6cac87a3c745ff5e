import itertools
import json
import random
import re
import textwrap
import unicodedata
from pathlib import Path

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_gpt.checkpoints import find
from keras_gpt.data import embedded_corpus
from keras_gpt.export.text_ops import TextDecoder, make_text_encoder
from keras_gpt.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
)
from keras_gpt.tokenizers.rules import GPT2_WORDS, PRE_TOKENIZERS
from tests.export.conftest import graph_ops

GPT2 = PRE_TOKENIZERS["gpt-2"]
SPECIAL_TOKENS = ("<|endoftext|>", "<|user|>")
# By name: what cuts text into words, over the same vocabulary
WORD_RULES = {
    "gpt2": GPT2,
    "gpt2_as_split": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": GPT2_WORDS},
                "behavior": "Isolated",
                "invert": False,
            },
            {**GPT2, "use_regex": False},
        ],
    },
    "smollm2": PRE_TOKENIZERS["smollm"],
    "digits_in_a_row": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": False}, GPT2],
    },
    "llama3": PRE_TOKENIZERS["llama3"],
    "qwen2": PRE_TOKENIZERS["qwen2"],
}
HARD = [
    "",
    " ",
    "'",
    "''s 's's x's' 'really ' 's 'S 'RE'll'd'",
    "I'll say they don't; WE'VE said IT'S so, o'clock 'tis '\u017f",
    "12345 3.14159  7  1,000,000 abc123def ½ ² ٣٤٥ \uff11\uff12 x  1",
    "你好\uff0c世界。 здравствуй, мир! مرحبا بالعالم हिन्दी",
    "👩‍👩‍👧‍👦 🎉🎉 naïve e\u0301 façade",
    "a   b \n\n\n c\t\td  \r\n e\u00a0f\u3000g \u2028\u2028h  ",
    "!\n\n  x !a !!a \t!a \n!\r\n",
    " \x00\x04\x06\x1c\x85\u200b\ufeff ▁Ġ ",
    "<|endoftext|> <|user|>s <0x0A> <unk>",
    "\U00040000\U000e0100\U0010ffff",
]
# Characters at which rules for words differ
TRICKY = [
    *"''''  \n\r\t.!aAsStdmrevl09",
    *"\u00a0\u2028\u3000\u0085\u017fé你½²٣",
    "'s",
    "'ll",
]
TEXTS = st.lists(
    st.lists(st.sampled_from(TRICKY) | st.characters(codec="utf-8")).map("".join)
)
ILL_FORMED = [
    b"\xed\xa0\x80",  # a surrogate
    b"a\xe2\x82",  # cut off
    b"\xf0\x9f\x98'll",
    b"\xc0\xaf \xe0\x80\x80",  # longer than need be
    b"\xf4\x90\x80\x80\xf5\xff\xfe",  # past the last code point
    b"\xef\xbb\xbfa\x00",  # valid: a mark of byte order, NUL
]


def encode(encoder, texts):
    token_ids, lengths = encoder(tf.constant(texts, tf.string))
    assert token_ids.dtype == lengths.dtype == tf.int32
    rows = zip(token_ids.numpy().tolist(), lengths.numpy().tolist(), strict=True)
    found = []
    for row, length in rows:
        assert row[length:] == [-1] * (len(row) - length)
        found.append(row[:length])
    return found


def compiled(encoder):
    return tf.function(encoder, input_signature=[tf.TensorSpec([None], tf.string)])


def check_encoding(encoder, tokenizer, texts):
    found = encode(encoder, texts)
    expected = tokenizer.encode_batch(texts)
    different = [
        (text, a, b)
        for text, a, b in zip(texts, found, expected, strict=True)
        if a != b
    ]
    assert not different


def with_rule(tokenizer, **parts):
    """A tokenizer whose `tokenizer.json` has other parts."""
    return BytePairTokenizer(json.dumps({**json.loads(tokenizer.to_json()), **parts}))


@pytest.fixture(scope="module")
def documents():
    return [*itertools.islice(embedded_corpus(), 60), *HARD]


@pytest.fixture(scope="module")
def lines(documents):
    """Some thousand: English, source code, every script, symbols."""
    source = Path(json.__file__).read_text("utf-8").splitlines()
    choice = random.Random(0)
    codes = [c for c in range(0x30000) if unicodedata.category(chr(c)) != "Cs"]
    scripts = [
        "".join(map(chr, codes[start : start + 40]))
        for start in choice.sample(range(len(codes)), 600)
    ]
    mixed = [
        "".join(choice.choices([*TRICKY, chr(choice.choice(codes))], k=20))
        for _ in range(2000)
    ]
    english = "\n".join(documents).splitlines()[:2000]
    return [*HARD, *english, *source, *scripts, *mixed, documents[0]]


@pytest.fixture(scope="module")
def byte_pair(documents):
    return BytePairTokenizer.train(
        documents, 1500, special_tokens=SPECIAL_TOKENS, progress=False
    )


@pytest.fixture(scope="module")
def marked(documents):
    """Like Llama 2's: spaces as "▁", no words, bytes for unknown characters."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    library.normalizer = normalizers.Sequence([prepend, replace])
    names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=names, show_progress=False, max_token_length=16
    )
    corpus = [line for text in documents[:20] for line in textwrap.wrap(text, 40)]
    library.train_from_iterator(corpus, trainer)
    content = json.loads(library.to_str())
    content["model"]["byte_fallback"] = True
    content["added_tokens"] = content["added_tokens"][:1]
    content["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return BytePairTokenizer(json.dumps(content))


@pytest.fixture(scope="module")
def smollm2(smollm2_file):
    return find(smollm2_file).tokenizer


@pytest.fixture(scope="module")
def tokenizers(documents, byte_pair, marked):
    characters = sorted(set("".join(documents)))
    return {
        "character": CharacterTokenizer(characters[:90], unknown="symbol"),
        "sentence_piece": SentencePieceTokenizer.train(
            documents, 900, special_tokens=SPECIAL_TOKENS, progress=False
        ),
        "byte_pair": byte_pair,
        "marked": marked,
    }


@pytest.fixture(params=["character", "sentence_piece", "byte_pair", "marked"])
def tokenizer(request, tokenizers):
    return tokenizers[request.param]


def test_ids_are_the_tokenizers(tokenizer, lines):
    check_encoding(compiled(make_text_encoder(tokenizer)), tokenizer, lines)


def test_a_tokenizer_becomes_operations_in_silence(tokenizer, capfd):
    make_text_encoder(tokenizer)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("rule", WORD_RULES)
def test_words_are_the_librarys(byte_pair, lines, rule):
    tokenizer = with_rule(byte_pair, pre_tokenizer=WORD_RULES[rule])
    encoder = compiled(make_text_encoder(tokenizer))
    check_encoding(encoder, tokenizer, lines)

    @settings(max_examples=50)
    @given(texts=TEXTS)
    def check(texts):
        check_encoding(encoder, tokenizer, texts)

    check()


def test_ids_are_smollm2s(smollm2, lines):
    # It has two merges for some tokens, and no token for some bytes
    check_encoding(compiled(make_text_encoder(smollm2)), smollm2, lines)


@settings(max_examples=50)
@given(
    merges=st.lists(
        st.tuples(*2 * [st.text("abc", min_size=1, max_size=4)]), unique=True
    ),
    texts=st.lists(st.text("abc", max_size=40), min_size=10, max_size=10),
)
def test_merges_in_any_order_are_done_alike(byte_pair, merges, texts):
    # Several for one token, those that never apply, and tokens that never arise
    model = json.loads(byte_pair.to_json())["model"]
    names = [name for name in model["vocab"] if len(name) == 1]
    names += sorted({name for pair in merges for name in (*pair, "".join(pair))})
    vocabulary = {name: i for i, name in enumerate(dict.fromkeys(names))}
    model = {**model, "vocab": vocabulary, "merges": merges}
    tokenizer = with_rule(byte_pair, model=model, added_tokens=[])
    check_encoding(make_text_encoder(tokenizer), tokenizer, texts)


def test_a_long_word_is_merged_alike(byte_pair):
    word = "".join(random.Random(0).choices("etaoinshrdlu", k=20_000))
    check_encoding(make_text_encoder(byte_pair), byte_pair, [word, "a" * 9999])


def test_whole_words_are_allowed_where_merges_give_them(byte_pair, lines):
    model = json.loads(byte_pair.to_json())["model"]
    whole = with_rule(byte_pair, model={**model, "ignore_merges": True})
    check_encoding(make_text_encoder(whole), whole, lines[:500])
    vocabulary = {**model["vocab"], "Ġxyzzy": len(model["vocab"])}
    model = {**model, "ignore_merges": True, "vocab": vocabulary}
    with pytest.raises(ValueError, match=r"don't make the tokens \[' xyzzy'\]"):
        make_text_encoder(with_rule(byte_pair, model=model, added_tokens=[]))


def test_empty_batches_and_texts_have_no_ids(tokenizer):
    encoder = make_text_encoder(tokenizer)
    decoder = TextDecoder(tokenizer)
    for texts in ([], [""], ["", ""]):
        token_ids, lengths = encoder(tf.constant(texts, tf.string))
        assert token_ids.shape == (len(texts), 0)
        assert lengths.numpy().tolist() == [0] * len(texts)
        assert decoder(token_ids).numpy().tolist() == [b""] * len(texts)


def test_bytes_that_are_not_utf8_are_replaced_as_in_python(tokenizer):
    choice = random.Random(0)
    edges = b"aA'\x00\x80\x8f\x90\xa0\xbf\xc0\xc2\xe0\xe2\xed\xef\xf0\xf4\xf5\xff\xbb"
    rows = [bytes(choice.choices(edges, k=choice.randrange(9))) for _ in range(2000)]
    rows += ILL_FORMED
    texts = [row.decode("utf-8", "replace") for row in rows]
    found = encode(make_text_encoder(tokenizer), rows)
    assert found == tokenizer.encode_batch(texts)


def test_an_unknown_character_is_an_error_that_names_it():
    encoder = make_text_encoder(CharacterTokenizer("abc"))
    for call in (encoder, compiled(encoder)):
        assert encode(call, ["cab", ""]) == [[2, 0, 1], []]
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="not in the vocab"
        ) as e:
            call(tf.constant(["ab", "cdb"]))
        assert re.search(r"vocabulary:\W+(b')?d\b", str(e.value))


def test_text_is_the_tokenizers(tokenizer):
    decoder = TextDecoder(tokenizer)
    choice = random.Random(0)
    size = tokenizer.vocab_size
    # every second a byte or a special token, so that much isn't UTF-8
    rows = [
        [
            choice.choice([choice.randrange(size), choice.randrange(300) % size])
            for _ in range(choice.randrange(12))
        ]
        for _ in range(2000)
    ]
    expected = [
        tokenizer.decode_bytes(row, skip_special_tokens=True).decode("utf-8", "replace")
        for row in rows
    ]
    # padding, and ids that only the model has
    padded = [row + [-1] * (11 - len(row)) + [size, size + 9] for row in rows]
    found = decoder(tf.constant(padded)).numpy()
    assert [text.decode("utf-8") for text in found] == expected


def test_what_is_encoded_decodes_to_itself(byte_pair, lines):
    decoder = TextDecoder(byte_pair)
    token_ids, _ = make_text_encoder(byte_pair)(tf.constant(lines))
    assert [text.decode() for text in decoder(token_ids).numpy()] == lines


def test_both_are_saved_and_loaded(tokenizer, lines, tmp_path):
    module = tf.Module()
    module.encoder = make_text_encoder(tokenizer)
    module.decoder = TextDecoder(tokenizer)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text):
        token_ids, lengths = module.encoder(text)
        return {
            "token_ids": token_ids,
            "lengths": lengths,
            "text": module.decoder(token_ids),
        }

    module.serve = serve
    tf.saved_model.save(module, tmp_path, signatures=serve)
    loaded = tf.saved_model.load(tmp_path)
    texts = lines[:300]
    found = loaded.signatures["serving_default"](tf.constant(texts))
    ids = tokenizer.encode_batch(texts)
    assert found["lengths"].numpy().tolist() == [len(row) for row in ids]
    assert found["token_ids"].numpy().tolist() == [
        row + [-1] * (max(map(len, ids)) - len(row)) for row in ids
    ]
    operations = graph_ops(tmp_path)
    assert not [name for name in operations if "Xla" in name or "PyFunc" in name]


def test_what_cannot_be_exported_is_refused(byte_pair):
    content = json.loads(byte_pair.to_json())
    spaced = {**GPT2, "add_prefix_space": True}
    plain = {**content["added_tokens"][0], "special": False}
    model = content["model"]
    vocabulary = {k: v for k, v in model["vocab"].items() if k != "!"}
    unknown = {**model, "vocab": vocabulary, "unk_token": "a"}
    refused = {
        r"normalizer. Received: \{\"type\": \"NFC\"\}": {"normalizer": {"type": "NFC"}},
        r"pre_tokenizer. .*Metaspace.* Supported: ByteLevel": {
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}
        },
        r"pre_tokenizer. .*\"add_prefix_space\": true": {"pre_tokenizer": spaced},
        r"pre_tokenizer. .*\"pretokenizers\": \[\]": {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": []}
        },
        r"pre_tokenizer. Received: null": {"pre_tokenizer": None},
        r"aren't special. Received: \[\"<\|endoftext\|>\"\]": {"added_tokens": [plain]},
        r"end_of_word_suffix. Received: \"</w>\"": {
            "model": {**model, "end_of_word_suffix": "</w>"}
        },
        "not all of the 256 bytes": {"model": unknown},
    }
    for message, parts in refused.items():
        with pytest.raises(ValueError, match=message):
            make_text_encoder(with_rule(byte_pair, **parts))
    with pytest.raises(ValueError, match="`tokenizer` must be a CharacterTokenizer"):
        make_text_encoder("gpt2")


def test_bytes_without_a_token_are_left_out_as_in_the_library(byte_pair, lines):
    # before merging, so that what stood beside them can meet
    model = json.loads(byte_pair.to_json())["model"]
    vocabulary = dict(model["vocab"])
    (name,) = (k for k, v in vocabulary.items() if byte_pair.decode_bytes([v]) == b"\t")
    del vocabulary[name]
    merges = [pair for pair in model["merges"] if name not in "".join(pair)]
    vocabulary = {k: v for k, v in vocabulary.items() if name not in k}
    model = {**model, "vocab": vocabulary, "merges": merges}
    tokenizer = with_rule(byte_pair, model=model)
    texts = [*lines[:300], "t\the", "\t", "a\tb\t\t", "\t \t the"]
    check_encoding(make_text_encoder(tokenizer), tokenizer, texts)
