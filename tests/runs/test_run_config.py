import dataclasses

import pytest

from keras_gpt.runs import RunConfig


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
    assert (config.learning_rate, config.clip_norm) == (1e-3, None)
    assert (config.steps, config.weight_decay) == (1000, 0.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lerning_rate=1", r"Did you mean 'learning_rate'"),
        ("learning_rate=fast", r"`learning_rate` must be of type float.*'fast'"),
        ("steps=2.5", r"`steps` must be of type int"),
        ("steps=true", r"`steps` must be of type int"),
        ("steps=0", r"`steps` must be a positive integer"),
        ("model=gpt2", r"`model` must be of type dict"),
        ("jit_compile=maybe", r"`jit_compile` must be of type bool"),
        ("steps=1100", r"multiple of `evaluate_every`.*Try steps=1000"),
        ("steps=.inf", r"`steps` must be of type int"),
        ("steps", r"NAME=VALUE"),
        ("sample_prompt=[", r"isn't valid YAML.*'sample_prompt=\['.*quotes"),
        ("steps.most=3", r"`steps` must be of type int"),
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
    path.write_text("model: {vocab_size: 9}\nsteps: 10\n")
    config = RunConfig.from_yaml(path, ["model.num_layers=8"])
    assert config.model == {"vocab_size": 9, "num_layers": 8}
    with pytest.raises(ValueError, match=r"`steps` has no fields.*'steps.most=3'"):
        RunConfig.from_yaml(path, ["steps.most=3"])


def test_an_evaluation_is_never_further_off_than_the_end_of_the_run():
    config = RunConfig(steps=40)
    assert (config.evaluate_every, config.warmup_steps) == (40, 4)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("steps: [1\n")
    with pytest.raises(ValueError, match=r"run\.yaml is not valid YAML"):
        RunConfig.from_yaml(path, [])
    path.write_text("steps\n")
    with pytest.raises(ValueError, match=r"run\.yaml must hold `name: value` lines"):
        RunConfig.from_yaml(path, [])


def test_every_field_is_documented():
    for field in dataclasses.fields(RunConfig):
        assert f"        {field.name}: " in RunConfig.__doc__


def test_the_configurations_that_ship_are_valid(pytestconfig):
    paths = sorted((pytestconfig.rootpath / "examples").glob("*.yaml"))
    assert paths
    for path in paths:
        RunConfig.from_yaml(path, [])
