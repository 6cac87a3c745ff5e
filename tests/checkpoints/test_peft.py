"""Adapters that PEFT writes: the same logits."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch

from keras_gpt import LanguageModel, training
from tests.checkpoints.test_huggingface import GPT2, LLAMA, TOLERANCE

peft = pytest.importorskip("peft", reason="pip install peft")
pytestmark = pytest.mark.usefixtures("quiet_transformers")

ALL = {"r": 2, "lora_alpha": 6, "target_modules": "all-linear", "use_rslora": True}
FEW = {"r": 3, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"]}
CASES = {
    "llama, all": ("llama", LLAMA, ALL),
    "llama, some": ("llama", LLAMA, FEW),
    "llama, a pattern, one block": (
        "llama",
        LLAMA,
        {"target_modules": r".*\.1\..*\.(k_proj|o_proj|up_proj)"},
    ),
    "qwen3": ("qwen3", {**LLAMA, "head_dim": 16}, ALL),
    "gpt2": ("gpt2", GPT2, {"target_modules": ["c_attn", "c_proj", "c_fc"]}),
}
GREEDY = {"max_new_tokens": 8, "temperature": 0}


@pytest.fixture
def base(make_reference, byte_pair, tmp_path):
    """A function that makes a model of Transformers and its folder."""

    def make(family, settings):
        reference = make_reference(family, settings)
        byte_pair.save(tmp_path / "base")
        reference.save_pretrained(tmp_path / "base")
        reference.name_or_path = str(tmp_path / "base")
        return reference, tmp_path / "base"

    return make


@pytest.fixture
def adapt(tmp_path):
    """A function that puts an adapter with random weights beside a copy of a model."""

    def adapt(reference, settings, name="adapter"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of PEFT about Transformers
            reference = copy.deepcopy(reference)
            settings = peft.LoraConfig(**settings, task_type="CAUSAL_LM")
            adapted = peft.get_peft_model(reference, settings).eval()
            for key, weight in adapted.named_parameters():
                if "lora_" in key:
                    weight.data.normal_(std=0.1)
            adapted.save_pretrained(tmp_path / name)
        return adapted, tmp_path / name

    return adapt


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_peft(case, base, adapt, token_ids, logits_of):
    family, architecture, settings = CASES[case]
    reference, _ = base(family, architecture)
    adapted, folder = adapt(reference, settings)
    with torch.no_grad():
        plain, expected = (
            model(torch.tensor(token_ids)).logits.numpy()
            for model in (reference, adapted)
        )
    assert np.abs(expected - plain).max() > 0.1
    lm = LanguageModel.load(folder)  # with the base that it names
    found = logits_of(lm.model, token_ids)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    lm.merge_adapter()
    found = logits_of(lm.model, token_ids)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_each_row_is_written_by_its_own(base, adapt):
    reference, folder = base("llama", LLAMA)
    folders = {
        name: adapt(reference, settings, name)[1]
        for name, settings in {"all": ALL, "few": FEW}.items()
    }
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (folders["few"] / "chat_template.jinja").write_text(template)
    lm = LanguageModel.from_pretrained(folder)
    lm.load_adapters(folders)
    names = ["few", None, "all"]
    texts = lm.generate(["hello"] * 3, adapter=names, **GREEDY)
    alone = [LanguageModel.from_pretrained(folders.get(n, folder)) for n in names]
    assert texts == [each.generate("hello", **GREEDY) for each in alone]
    assert len(set(texts)) == 3
    assert lm.with_adapter("few").chat_template.template == template
    assert lm.with_adapter("all").chat_template is lm.chat_template is None


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_reads_our_adapters(
    family, base, randomize, token_ids, logits_of, tmp_path
):
    reference, folder = base(family, {"llama": LLAMA, "gpt2": GPT2}[family])
    lm = LanguageModel.from_pretrained(folder)
    training.enable_lora(lm.model, rank=2, alpha=3)
    for layer in lm.model.adapters.layers:
        randomize([layer.down, layer.up])
    expected = logits_of(lm.model, token_ids)
    lm.save_adapter(tmp_path / "adapter", base=str(folder), peft=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter")
        found = adapted(torch.tensor(token_ids)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    again = LanguageModel.load(tmp_path / "adapter")
    found = logits_of(again.model, token_ids)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("rank_pattern", {"q_proj": 4}),
        ("init_lora_weights", "pissa"),
        ("peft_type", "IA3"),
        ("of_the_future", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(setting, value, base, tmp_path):
    _, folder = base("llama", LLAMA)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, setting: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(ValueError, match=f"Received: {setting}="):
        LanguageModel.from_pretrained(folder).load_adapter(tmp_path)


def test_modules_without_a_place_and_other_bases_are_refused(base, adapt, tmp_path):
    reference, folder = base("llama", LLAMA)
    lm = LanguageModel.from_pretrained(folder)
    settings = {"target_modules": ["embed_tokens", "q_proj"]}
    _, adapter = adapt(reference, settings)
    with pytest.raises(ValueError, match=r"embed_tokens.*there is no place"):
        lm.load_adapter(adapter)
    other, _ = base("llama", {**LLAMA, "num_key_value_heads": 4})
    _, adapter = adapt(other, {"target_modules": ["v_proj"]})
    with pytest.raises(ValueError, match=r"v_proj.lora_B.weight must be \(16, 8\)"):
        lm.load_adapters({"other": adapter})
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        lm.load_adapter(adapter)
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace(str(folder), ""))
    with pytest.raises(ValueError, match="names no base"):
        LanguageModel.load(adapter)
