import dataclasses

import pytest

from experiments.harness.quadratic import Quadratic
from manifold_optax.experiments import __main__ as program, harness
from manifold_optax.experiments.harness import command_line
from manifold_optax.experiments.harness.command_line import main


@pytest.fixture
def calls(monkeypatch):
    """Replaces every experiment by a record of its configurations."""
    configs = []

    def record(experiment, origin):
        experiment.origin = origin
        configs.append(experiment)
        return "the report\n"

    monkeypatch.setattr(command_line, "run_experiment", record)
    return configs


@pytest.fixture
def commands():
    """The real commands and their settings, of an experiment without data."""

    class Settings(Quadratic):
        def __init__(self, config):
            harness.Experiment.__init__(self, config, rounds=1, steps_per_round=1)

    return {
        name: dataclasses.replace(command, prepare=Settings)
        for name, command in program.commands().items()
    }


def test_every_folder_is_an_experiment():
    names = ["failures", "lm", "mlp", "modulewise", "precision"]
    assert list(program.commands()) == [*names, "robustness", "transfer"]


def test_the_data_set_decides_the_defaults(calls, commands, tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('data = "cifar10"\n')
    main(commands, ["mlp"])
    main(commands, ["mlp", "--data", "cifar10"])
    main(commands, ["mlp", "--config", str(path)])
    batch_sizes = [experiment.config.batch_size for experiment in calls]
    assert batch_sizes[0] < 1024
    assert batch_sizes[1:] == [1024, 1024]


def test_the_command_line_overrides_the_file(calls, commands, tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("epochs = 9\nseeds = [1]\n[learning_rates]\nadamw = [0.1]\n")
    options = ["--seeds", "5", "6", "--learning-rates.muon", "0.2", "0.3"]
    main(commands, ["mlp", "--config", str(path), *options])
    config = calls[0].config
    assert (config.epochs, config.seeds) == (9, (5, 6))
    assert config.learning_rates.adamw == (0.1,)
    assert config.learning_rates.muon == (0.2, 0.3)
    assert capsys.readouterr().out == "the report\n\nWritten to runs/mlp.\n"


def test_the_command_is_handed_over_as_it_starts_anew(calls, commands, monkeypatch):
    words = ["mlp", "--resume", "--output-dir", "a b"]
    monkeypatch.setattr("sys.argv", ["__main__.py", *words])
    for arguments in (words, None):
        main(commands, arguments)
        origin = calls[-1].origin
        assert calls[-1].config.resume
        assert origin.name == "mlp"
        assert origin.help == commands["mlp"].help
        assert origin.command == (
            "python -m manifold_optax.experiments mlp --output-dir 'a b'"
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cnn"], "invalid choice: 'cnn' (choose from 'failures', 'lm'"),
        ([], "the following arguments are required: experiment"),
        (["mlp", "--data", "mnist"], "choose from 'digits', 'cifar10'"),
        (["mlp", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["mlp", "--epochs", "9" * 30], "epochs must be at most 1000000000"),
        (["mlp", "--epoch", "3"], "Unrecognized options"),
        (["mlp", "--data", "cifar10"], "needs data_dir"),
        (["mlp", "--config", "absent.toml"], "absent.toml"),
        (["lm", "--text", "absent.txt"], "absent.txt"),
        (["lm", "--training.steps", "0"], "steps must be at least 1, got 0"),
        (["lm", "--training.steps", "9" * 30], "steps must be at most 1000000000"),
        (["lm", "--data", "digits"], "Unrecognized options"),
        (["lm", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_wrong_usage_is_explained(calls, capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        program.main(arguments)
    captured = capsys.readouterr()
    assert raised.value.code == 2
    assert message in captured.err
    assert not calls


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 9\n", "Unknown setting: 'epoch'. Did you mean 'epochs'?"),
        ("epochs = " + 30 * "9", "epochs must be at most 1000000000, got 9999"),
        ("epochs = " + 5000 * "9", "is not valid TOML"),
        ("seeds = " + 10_000 * "[", "is not valid TOML"),
    ],
    ids=["unknown", "large", "huge", "deep"],
)
def test_a_wrong_file_is_explained(calls, tmp_path, capsys, content, message):
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(SystemExit):
        program.main(["mlp", "--config", str(path)])
    assert message in capsys.readouterr().err
    assert not calls
