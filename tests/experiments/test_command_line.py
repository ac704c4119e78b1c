import pytest

from manifold_optax.experiments import __main__ as command_line


@pytest.fixture
def calls(monkeypatch):
    """Replaces the experiment by a record of its configurations."""
    configs = []

    def record(config, dataset):
        configs.append(config)
        return "the report\n"

    monkeypatch.setattr(command_line, "run_mlp", record)
    return configs


def test_the_data_set_decides_the_defaults(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "load_dataset", lambda config: None)
    command_line.main(["mlp"])
    command_line.main(["mlp", "--data", "cifar10", "--data-dir", str(tmp_path)])
    assert (calls[0].epochs, calls[0].batch_size) == (20, 128)
    assert (calls[1].epochs, calls[1].batch_size) == (3, 1024)


def test_the_command_line_overrides_the_file(calls, tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("epochs = 9\nseeds = [1]\n[learning_rates]\nadamw = [0.1]\n")
    options = ["--seeds", "5", "6", "--learning-rates.muon", "0.2", "0.3"]
    command_line.main(["mlp", "--config", str(path), *options])
    config = calls[0]
    assert (config.epochs, config.seeds) == (9, (5, 6))
    assert config.learning_rates.adamw == (0.1,)
    assert config.learning_rates.muon == (0.2, 0.3)
    assert capsys.readouterr().out == "the report\n\nWritten to runs/mlp.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cnn"], "invalid choice: 'cnn' (choose from 'mlp', 'lm')"),
        ([], "the following arguments are required: experiment"),
        (["mlp", "--data", "mnist"], "choose from 'digits', 'cifar10'"),
        (["mlp", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["mlp", "--epoch", "3"], "Unrecognized options"),
        (["mlp", "--data", "cifar10"], "needs data_dir"),
        (["mlp", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_wrong_usage_is_explained(calls, capsys, arguments, message):
    with pytest.raises(SystemExit) as raised:
        command_line.main(arguments)
    captured = capsys.readouterr()
    assert raised.value.code == 2
    assert message in captured.err
    assert not calls


def test_unknown_key_of_a_file_is_explained(calls, tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("epoch = 9\n")
    with pytest.raises(SystemExit):
        command_line.main(["mlp", "--config", str(path)])
    assert "Unknown setting: 'epoch'. Did you mean 'epochs'?" in capsys.readouterr().err


def test_existing_results_are_explained(calls, tmp_path, capsys, monkeypatch):
    def refuse(config, dataset):
        raise FileExistsError("add --resume")

    monkeypatch.setattr(command_line, "run_mlp", refuse)
    with pytest.raises(SystemExit):
        command_line.main(["mlp", "--output-dir", str(tmp_path)])
    assert "add --resume" in capsys.readouterr().err
