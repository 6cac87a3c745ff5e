import pytest
import yaml

from keras_gpt import FAST_ARCHITECTURE, GPTConfig
from keras_gpt.runs import FinetuneConfig, RunConfig

SIZES = {"vocab_size": 65, "context_length": 8}
SIZES |= {"embedding_dimension": 16, "num_layers": 1, "num_heads": 2}


def test_overrides_win_over_the_file_which_wins_over_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: 500\nbatch_size: 8\nmodel: {preset: gpt2, num_layers: 2}\n")
    config = RunConfig.from_yaml(path, ["batch_size=4", "model.num_heads=6"])
    assert (config.steps, config.batch_size, config.seed) == (500, 4, 0)
    assert config.model == {"preset": "gpt2", "num_layers": 2, "num_heads": 6}


def test_numbers_are_read_as_people_write_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-3\nclip_norm: null\n")
    config = RunConfig.from_yaml(path, ["steps=1e3", "weight_decay=0"])
    assert config.save_every == "10min"
    assert config.replaced(save_every="1e2").save_every == 100
    assert config.replaced(save_every="0.5min").save_every == "0.5min"
    assert (config.learning_rate, config.clip_norm) == (1e-3, None)
    assert (config.steps, config.weight_decay) == (1000, 0.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=1", r"Did you mean 'learning_rate'"),
        ("lr=1", r"Did you mean 'learning_rate'"),
        ("max_iters=9", r"Did you mean 'steps'"),
        ("n_embd=8", r"Did you mean 'model\.embedding_dimension'"),
        ("embedding_dimension=8", r"Did you mean 'model\.embedding_dimension'"),
        ("model.n_layer=8", r"Did you mean 'num_layers'"),
        ("learning_rate=fast", r"`learning_rate` must be a valid number.*'fast'"),
        ("steps=2.5", r"`steps` must be a valid integer"),
        ("steps=true", r"`steps` must be a valid integer"),
        ("steps=0", r"`steps` must be greater than or equal to 1.*steps=0"),
        ("model=gpt2", r"`model` must be a valid dictionary"),
        ("jit_compile=maybe", r"`jit_compile` must be a valid boolean"),
        ("steps=1100", r"multiple of `evaluate_every`.*Try steps=1000"),
        ("steps=.inf", r"`steps` must be a valid integer"),
        ("steps", r"NAME=VALUE"),
        ("sample_prompt=[", r"isn't valid YAML.*'sample_prompt=\['.*quotes"),
        ("steps.most=3", r"`steps` has no fields"),
        ("recipe=quick", r"`recipe` must be 'classic' or 'fast'.*recipe='quick'"),
        ("optimizer=sgd", r"`optimizer` must be 'adamw' or 'muon'.*optimizer='sgd'"),
        ("schedule=linear", r"`schedule` must be 'cosine', 'wsd' or 'constant'"),
        ("sequence_length=0", r"`sequence_length` must be greater than"),
        ("sequence_length=129", r"at most.*sequence_length=129, context_length=128"),
        ("batch_size=0", r"`batch_size` must be greater than or equal to 1"),
        ("save_every=0", r"`save_every` must be a number of steps, or minutes such as"),
        ("save_every=2h", r"`save_every` .* such as 10min. Received: save_every='2h'"),
        ("early_stopping=-1", r"`early_stopping` must be greater than or equal to 1"),
        ("beta_1=2", r"`beta_1` must be less than 1"),
        ("clip_norm=-1", r"`clip_norm` must be greater than 0"),
        ("learning_rate=.nan", r"`learning_rate` must be a finite number|greater"),
        ("warmup_steps=2000", r"`warmup_steps` must be below `steps`"),
        ("dtype=float23", r"`dtype` must be such as float32"),
        ("model.preset=gpt3", r"Did you mean 'gpt2'"),
        ("model.num_heads=7", r"Try num_heads=6"),
    ],
)
def test_a_bad_override_names_the_field_and_the_way_out(override, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_yaml(None, [override])


def test_a_changed_field_of_the_model_leaves_the_others_of_its_preset(tmp_path):
    config = RunConfig.from_yaml(None, ["model.num_layers=8"])
    assert config.model == {**RunConfig().model, "num_layers": 8}
    config = RunConfig.from_yaml(None, ["model.preset=gpt2", "model.num_layers=8"])
    assert config.model == {"preset": "gpt2", "num_layers": 8}
    path = tmp_path / "run.yaml"
    own = "embedding_dimension: 8, num_heads: 2, context_length: 4"
    path.write_text(f"model: {{{own}}}\nsteps: 10\n")
    config = RunConfig.from_yaml(path, ["model.num_layers=8"])
    assert config.model == {**yaml.safe_load(f"{{{own}}}"), "num_layers": 8}
    with pytest.raises(ValueError, match=r"`steps` has no fields.*'steps.most=3'"):
        RunConfig.from_yaml(path, ["steps.most=3"])


def test_a_recipe_gives_way_to_what_the_run_says():
    config = RunConfig(recipe="fast", learning_rate=0.5, model={"preset": "char_cpu"})
    assert (config.learning_rate, config.optimizer) == (0.5, "muon")
    assert config.final_learning_rate == 0
    assert config.architecture() == GPTConfig.from_preset(
        "char_cpu", **FAST_ARCHITECTURE
    )
    config = config.replaced(optimizer="adamw", model={"activation": "gelu", **SIZES})
    assert (config.learning_rate, config.optimizer) == (0.5, "adamw")
    assert config.architecture().activation == "gelu"
    assert config.architecture().qk_norm


def test_an_evaluation_is_never_further_off_than_the_end_of_the_run():
    config = RunConfig(steps=40).planned()
    assert (config.evaluate_every, config.warmup_steps) == (40, 4)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: [1\n")
    with pytest.raises(ValueError, match=r"run\.yaml is not valid YAML"):
        RunConfig.from_yaml(path, [])
    path.write_text("steps\n")
    with pytest.raises(ValueError, match=r"run\.yaml must hold `name: value` lines"):
        RunConfig.from_yaml(path, [])


@pytest.mark.parametrize("kind", [RunConfig, FinetuneConfig])
def test_the_schema_describes_every_field_to_editors(kind):
    fields = kind.schema_for_editors()["properties"]
    assert fields.keys() == kind.model_fields.keys()
    assert fields["seed"]["description"].startswith("Of weights")
    assert fields["batch_size"]["minimum"] == 1
    assert fields["optimizer"]["enum"] == ["adamw", "muon"]
    assert fields["weight_decay"]["description"] == "On matrices."


def test_the_configurations_that_ship_are_valid(pytestconfig):
    paths = sorted((pytestconfig.rootpath / "examples").glob("*.yaml"))
    assert paths
    for path in paths:
        RunConfig.from_yaml(path, [])


def test_matrices_to_adapt_are_checked_with_the_other_fields():
    with pytest.raises(ValueError, match=r"`lora_targets`.*mean 'query_key_value'"):
        FinetuneConfig(lora_targets="up_projection,q_proj")
