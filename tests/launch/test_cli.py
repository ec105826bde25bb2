import dataclasses
import os
import pathlib
import subprocess
import sys
from typing import Literal

import pytest

from launch import cli
from nrt_jax.errors import Stopped, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW.

    Attributes:
        learning_rate: the peak rate.
        betas: decay of the two moments.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self):
        if self.learning_rate <= 0:
            raise UserError(f"optimizer.learning_rate: {self.learning_rate} is not positive")
        if self.betas[0] > self.betas[1]:
            raise ValueError("betas must ascend")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """A run."""

    steps: int = 10
    """How many updates."""
    resume: bool = False
    data: pathlib.Path | None = None
    mode: Literal["gm", "ws"] = "gm"
    stops: tuple[str, ...] = ()
    optimizer: Optimizer = Optimizer()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needy:
    checkpoint: str
    optimizer: Optimizer = Optimizer()


def parse(*args, config_type=Config):
    return cli.parse(config_type, "prog", "Does a thing.", args=args)


def error_line(capsys, *args, config_type=Config, main=lambda config: None):
    """Runs a command that must fail, and returns its one line on stderr."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(main, config_type, "prog", "Does a thing.", args=args)
    out, err = capsys.readouterr()
    assert exit_.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("error: ")
    return err.removeprefix("error: ").rstrip("\n")


def test_no_flags_give_the_defaults():
    assert parse() == Config()


@pytest.mark.parametrize(
    "args",
    [
        ["--optimizer.learning-rate", "0.1"],
        ["--optimizer.learning_rate", "0.1"],
        ["--optimizer.learning-rate=0.1"],
        ["--optimizer.learning-rate", "3", "--optimizer.learning_rate", "0.1"],
    ],
)
def test_dashes_underscores_and_equals_signs_name_the_same_field(args):
    assert parse(*args).optimizer == Optimizer(learning_rate=0.1)


def test_values_take_the_type_of_their_field():
    config = parse(
        *["--steps", "3", "--data", "x.jsonl", "--mode", "ws", "--resume", "true"],
        *["--stops", "a", "b", "--optimizer.betas", "0.5", "0.6"],
    )
    assert config == Config(
        steps=3,
        data=pathlib.Path("x.jsonl"),
        mode="ws",
        resume=True,
        stops=("a", "b"),
        optimizer=Optimizer(betas=(0.5, 0.6)),
    )


def test_a_bool_alone_is_true_and_a_value_may_start_with_a_dash():
    config = parse("--resume", "--stops=--", "--data", "-")
    assert (config.resume, config.stops, config.data) == (True, ("--",), pathlib.Path("-"))


def test_an_optional_field_may_be_set_to_none():
    assert parse("--data", "None").data is None


def test_fields_that_must_fit_each_other_are_set_together():
    assert parse("--optimizer.betas", "0.99", "0.999").optimizer.betas == (0.99, 0.999)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (
            ["--optimiser.learning-rate", "1"],
            "unknown field --optimiser.learning-rate; did you mean --optimizer.learning-rate?",
        ),
        (["--learning_rate", "1"], "unknown field --learning-rate; did you mean --optimizer.learning-rate?"),
        (["--step", "1"], "unknown field --step; did you mean --steps?"),
        (["--zzz"], "unknown field --zzz; --help lists the fields"),
        (
            ["--optimizer", "adam"],
            "--optimizer is a group of fields; set one of them, such as --optimizer.learning-rate",
        ),
        (["--steps", "many"], "--steps: bad value 'many'; expected int"),
        (["--steps"], "--steps: no value; expected int"),
        (["--steps", "1", "2"], "--steps: bad value '1 2'; expected int"),
        (["--mode", "hm"], "--mode: bad value 'hm'; expected one of 'gm', 'ws'"),
        (["--resume", "maybe"], "--resume: bad value 'Maybe'; expected True or False"),
        (["--optimizer.betas", "1"], "--optimizer.betas: bad value '1'; expected tuple[float, float]"),
        (["--optimizer.betas", "0.9", "0.1"], "--optimizer: betas must ascend"),
        (["--optimizer.learning-rate", "-1"], "optimizer.learning_rate: -1.0 is not positive"),
        (["steps", "1"], "unexpected argument 'steps'; fields are set with --FIELD VALUE"),
        (["--config"], "--config: no value; expected one file"),
    ],
)
def test_bad_input_is_one_line_that_names_field_value_and_what_was_expected(capsys, args, line):
    assert error_line(capsys, *args) == line


def test_a_required_field_must_be_given(capsys):
    assert error_line(capsys, config_type=Needy) == "--checkpoint: missing; expected str"
    assert parse("--checkpoint", "x", config_type=Needy) == Needy(checkpoint="x")


def test_a_user_error_of_the_command_is_one_line(capsys):
    def main(config):
        raise UserError(f"steps: {config.steps} is\nodd")

    assert error_line(capsys, "--steps", "3", main=main) == "steps: 3 is odd"


def test_other_errors_of_the_command_keep_their_traceback():
    def main(config):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main, Config, "prog", "Does a thing.", args=[])


def test_an_interrupt_exits_with_130(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit_:
        cli.run(main, Config, "prog", "Does a thing.", args=[])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_help_lists_the_typed_fields_with_their_docstrings(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda config: None, Config, "prog", "Does a thing.", args=["--steps", "3", "--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for words in [
        "--optimizer.learning-rate",
        "FLOAT",
        "the peak rate",
        "How many updates",
        "--config",
        "Does a thing",
    ]:
        assert words in text


@pytest.fixture
def recipes(tmp_path, monkeypatch):
    """A configs/ folder to which a test adds files."""
    monkeypatch.setattr(cli, "CONFIGS_FOLDER", tmp_path)
    return tmp_path


def write_recipe(folder, body, name="nrt"):
    path = folder / f"{name}.py"
    path.write_text(f"import dataclasses\n\n{body}\n")
    return str(path)


def give_config(monkeypatch, config):
    """Lets a config file return an object of this module, handed over through `cli`."""
    monkeypatch.setattr(cli, "given", config, raising=False)
    return "def get_config():\n    from launch import cli\n    return cli.given"


def test_a_config_file_is_found_by_path_or_bare_name_and_flags_go_over_it(recipes, monkeypatch):
    path = write_recipe(recipes, give_config(monkeypatch, Config(steps=7, optimizer=Optimizer(betas=(0.1, 0.2)))))
    for name in ("nrt", path):
        config = parse("--config", name, "--optimizer.learning-rate", "0.5")
        assert config == Config(steps=7, optimizer=Optimizer(learning_rate=0.5, betas=(0.1, 0.2)))


def test_a_config_file_may_define_its_own_dataclass(recipes):
    write_recipe(recipes, "@dataclasses.dataclass\nclass C:\n    a: 'int' = 1\n\ndef get_config(): return C()")
    with pytest.raises(UserError, match=r"get_config\(\) returns C; this command takes Config"):
        parse("--config", "nrt")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (None, "no such file; expected a Python file or one of base"),
        ("", "no get_config() in it; define one that returns Config"),
        ("def get_config(): return 3", "get_config() returns int; this command takes Config"),
        (
            "import nowhere_to_be_found",
            "the file fails with ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
    ],
)
def test_a_config_file_that_cannot_be_used_says_why(recipes, capsys, body, line):
    write_recipe(recipes, "", name="base")
    if body is not None:
        write_recipe(recipes, body)
    assert error_line(capsys, "--config", "nrt") == f"--config nrt: {line}"


def test_help_into_a_closed_pipe_ends_without_a_traceback():
    reader, writer = os.pipe()
    os.close(reader)
    command = (
        "from launch import cli; from launch.train import TrainConfig as C; cli.run(print, C, 'p', 'D.', args=['-h'])"
    )
    root = pathlib.Path(cli.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", command], stdout=writer, stderr=subprocess.PIPE, cwd=root)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_run_that_was_asked_to_stop_says_so_and_ends_well(capsys):
    def stopped(config):
        raise Stopped("stopped by SIGTERM after step 3 of 9, saved in runs/a; to go on, ..")

    cli.run(stopped, Config, "prog", "Does a thing.", args=[])
    assert capsys.readouterr() == ("stopped by SIGTERM after step 3 of 9, saved in runs/a; to go on, ..\n", "")


def test_a_flag_may_be_a_word_of_python_and_an_optional_bool_may_stand_alone(capsys):
    @dataclasses.dataclass(frozen=True)
    class Merge:
        lambda_: float = 1.0
        normalize: bool | None = None

    assert parse("--lambda", "0.5", "--normalize", config_type=Merge) == Merge(0.5, True)
    assert parse("--normalize", "none", config_type=Merge) == Merge()
    assert error_line(capsys, "--lambda", "x", config_type=Merge) == "--lambda: bad value 'x'; expected float"
