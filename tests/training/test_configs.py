"""Packaged configs: what they come out as, by which names they are found, and what arguments they take."""

import importlib.util
import json

import pytest

from brainldm.cli import main
from brainldm.runtime.errors import UserError
from brainldm.training.config import CONFIGS
from brainldm.training.config_arg import parse_arg
from brainldm.training.config_files import config_file, packaged_configs
from brainldm.training.flags import load_config, parse, process_flags


def flat(tree: dict, prefix: str = "") -> dict[str, str]:
    found = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = repr(value)
    return found


def recorded(repository) -> dict[str, dict[str, str]]:
    return json.loads((repository / "tests/golden/configs.json").read_text())


def test_every_packaged_config_comes_out_as_recorded(repository):
    for name, expected in recorded(repository).items():
        config = load_config(name)
        found = flat(config.to_dict())
        assert {key: found.get(key) for key in expected} == expected, name
        # Keys that came later leave older configs as they were: they have their defaults.
        defaults = flat(CONFIGS[config.stage]().to_dict())
        added = found.keys() - expected.keys()
        assert {key: found[key] for key in added} == {key: defaults[key] for key in added}, name
    assert {name.partition(":")[0] for name in recorded(repository)} == set(packaged_configs())


@pytest.mark.parametrize("name", packaged_configs())
def test_a_docstring_holds_the_launch_line_and_the_expected_figure(name):
    spec = importlib.util.spec_from_file_location(name, config_file(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert f"brainldm train --config {name} --workdir" in module.__doc__
    assert "Expected figure: " in module.__doc__


@pytest.mark.parametrize("name", packaged_configs())
@pytest.mark.parametrize(
    ("arg", "message"),
    [("tinny", "'tinny'.*Did you mean 'tiny'"), ("TINY", "Did you mean 'tiny'"), ("tiny=3", "true or false is wanted")],
)
def test_an_unknown_argument_of_a_config_is_refused(name, arg, message):
    with pytest.raises(UserError, match=message):
        load_config(f"{name}:{arg}")


def test_arguments_have_the_types_of_their_defaults():
    defaults = {"stage": ("autoencoder", "ldm"), "tiny": False, "steps": 10, "rate": 0.5, "note": ""}
    assert vars(parse_arg("", **defaults)) == {**defaults, "stage": "autoencoder"}
    given = parse_arg("stage=ldm, tiny,steps=3,rate=2,note=a=b", **defaults)
    assert vars(given) == {"stage": "ldm", "tiny": True, "steps": 3, "rate": 2.0, "note": "a=b"}
    assert parse_arg("tiny=false", **defaults).tiny is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("stage=both", "one of autoencoder, ldm is wanted"),
        ("steps=many", "a whole number is wanted"),
        ("steps", "'steps' has no value"),
        ("rate=x", "a number is wanted"),
        ("steps=1,steps=2", "given twice"),
        ("stepps=1", "Did you mean 'steps'.*It takes stage, steps, rate"),
    ],
)
def test_arguments_of_another_kind_are_refused(arg, message):
    with pytest.raises(UserError, match=message):
        parse_arg(arg, stage=("autoencoder", "ldm"), steps=1, rate=0.5)


def test_a_config_is_found_by_name_and_by_path(repository):
    by_name, by_path = load_config("demo_ldm:tiny"), load_config(f"{repository}/configs/demo_ldm.py:tiny")
    assert by_name.to_dict() == by_path.to_dict()
    with pytest.raises(UserError, match="no packaged config 'demo_ldn'. Did you mean demo_ldm"):
        load_config("demo_ldn")


def test_overrides_are_values_by_key_or_flags():
    by_key = load_config("demo_ldm:tiny", {"data.path": "people", "optimizer.learning_rate": 0.5})
    by_flag = load_config("demo_ldm:tiny", ["--config.data.path=people", "--config.optimizer.learning_rate=0.5"])
    assert by_key.to_dict() == by_flag.to_dict() and by_key.data.path == "people"
    assert by_key.is_locked
    with pytest.raises(UserError, match="learning_rate"):
        load_config("demo_ldm", {"optimizer.learning_rat": 1.0})
    with pytest.raises(UserError, match="batch_size"):
        load_config("demo_ldm", {"batch_size": "many"})
    with pytest.raises(UserError, match="unexpected word"):
        load_config("demo_ldm", ["word"])


def test_a_config_file_that_ends_the_program_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("import sys\ndef get_config():\n    sys.exit(3)\n")
    with pytest.raises(UserError, match=r"calls sys\.exit"):
        load_config(str(tmp_path / "mine.py"))


def test_the_flags_of_a_process_are_read_without_the_config(tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text("raise KeyError('executed')\n")
    arguments = ["--config", str(trap), "--workdir", "x", "--config.batch_size=2", "--distributed"]
    assert process_flags(arguments) == {"coordinator": None, "num_processes": None, "process_id": None}
    assert process_flags([*arguments, "--num-processes=4", "--process-id", "0"])["num_processes"] == 4
    assert process_flags(arguments[:-1]) is None
    with pytest.raises(UserError, match="--process-id is for a run of several processes: add --distributed"):
        process_flags(["--process-id=1"])
    with pytest.raises(UserError, match="executed"):
        parse(arguments)


@pytest.mark.parametrize("command", ["train", "plan", "check"])
def test_every_command_with_a_config_takes_names_and_refuses_unknown_arguments(command, tmp_path, capsys):
    more = {"train": ["--workdir", str(tmp_path / "run")], "plan": ["--devices", "1"], "check": []}[command]
    where = [str(tmp_path)] if command == "check" else []
    assert main([command, *where, "--config", "demo_ldm:tinny", *more]) == 2
    said = capsys.readouterr().err
    assert "Did you mean 'tiny'" in said and "Traceback" not in said
