"""What every command shares: a typed config from the command line, and one clear line when the input is bad.

    python -m launch.COMMAND [--config configs/NAME.py] [--FIELD.SUBFIELD VALUE ...]

The config is a frozen dataclass, nested as the command needs. A config file is Python with a function
`get_config()` that returns one. Each field is a flag of its dotted name, with dashes or underscores; tyro
converts the values and prints the help. Fields of type `tyro.conf.Positional[...]` are given before all flags, without
their names; the last of them may be a tuple, and takes several words. Where a flag's name is a word of Python's, such
as lambda, the field has an underscore at its end.
"""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import keyword
import os
import pathlib
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import absl.logging
import tyro

from nrt_jax import parallel
from nrt_jax.errors import Stopped, UserError, one_line
from nrt_jax.training.config_io import describe, init_types, is_required, leaf_types

ConfigT = TypeVar("ConfigT")

CONFIGS_FOLDER = pathlib.Path(__file__).resolve().parent.parent / "configs"

_MARKERS = (tyro.conf.FlagConversionOff,)  # a bool takes a value like every other field


@parallel.ends_together()
def run(
    main: Callable[[ConfigT], Any],
    config_type: type[ConfigT],
    prog: str,
    description: str,
    *,
    default_config: str | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    args: Sequence[str] | None = None,
) -> None:
    """Runs a command: parses its config and calls `main` with it; bad input ends in one line and exit code 2.

    So does a run that was asked to stop, with exit code 0.

    Args:
        main: the command.
        config_type: its config, a frozen dataclass.
        prog: how the command is called, such as `python -m launch.train`.
        description: what it does, for `--help`.
        default_config: the config file that is used without `--config`; the type's defaults when None.
        implied: from the values given, by dotted field name, those that follow for fields that are not given.
        args: the command line; `sys.argv[1:]` when None.

    Raises:
        SystemExit: 2 for bad input, 130 when interrupted, 141 when nobody reads the output, 0 after `--help`.
    """
    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax and Grain log, with tracebacks, what they also raise
    try:
        try:
            main(parse(config_type, prog, description, default_config=default_config, implied=implied, args=args))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered still goes somewhere at exit
        raise SystemExit(128 + signal.SIGPIPE) from None
    except Stopped as stopped:
        print(stopped)
    except UserError as error:
        print("error:", one_line(error), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def parse(
    config_type: type[ConfigT],
    prog: str,
    description: str,
    *,
    default_config: str | None = None,
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    args: Sequence[str] | None = None,
) -> ConfigT:
    """Builds the config: its defaults, or those of the `--config` file, with the flags put over them.

    Raises:
        UserError: an unknown field, a bad or missing value, or a config file that cannot be used.
        SystemExit: 0 after `--help`.
    """
    flags, wants_help = _split(sys.argv[1:] if args is None else args, _positionals(config_type))
    config_file = _one_token("config", flags.pop("config")) if "config" in flags else default_config
    base = None if config_file is None else load_config(config_file, config_type)
    if wants_help:
        _print_help(config_type, base, prog, description)
    values = _convert(config_type, flags)
    if implied is not None:
        values = {**implied(values), **values}
    return _build(config_type, base, values, prefix="")


def load_config(name: str, config_type: type[ConfigT]) -> ConfigT:
    """Loads a config file: a path, or the bare name of a file in `configs/`.

    Raises:
        UserError: no such file, or one that fails, lacks `get_config()` or returns another type from it.
    """
    candidates = [pathlib.Path(name), CONFIGS_FOLDER / f"{name}.py", CONFIGS_FOLDER.parent / name]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        files = CONFIGS_FOLDER.rglob("[!_]*.py")
        known = sorted(file.relative_to(CONFIGS_FOLDER).with_suffix("").as_posix() for file in files)
        raise UserError(f"--config {name}: no such file; expected a Python file or one of {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if spec is None:
        raise UserError(f"--config {name}: not a Python file; expected one that defines get_config()")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass defined in the file looks its module up
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"--config {name}: no get_config() in it; define one that returns {config_type.__name__}")
        config = module.get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config {name}: the file fails with {type(error).__name__}: {error}") from error
    if dataclasses.is_dataclass(config) and issubclass(config_type, type(config)):  # A recipe, and more fields.
        config = config_type(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})
    if not isinstance(config, config_type):
        found = type(config).__name__
        raise UserError(f"--config {name}: get_config() returns {found}; this command takes {config_type.__name__}")
    return config


def _positionals(config_type: type) -> dict[str, bool]:
    """The fields that are given without their names, in order, and whether each takes several words."""
    hints = typing.get_type_hints(config_type, include_extras=True)
    marker = typing.get_args(tyro.conf.Positional[str])[1]
    return {
        name: typing.get_origin(typing.get_args(hint)[0]) is tuple
        for name, hint in hints.items()
        if marker in getattr(hint, "__metadata__", ())
    }


def _split(args: Sequence[str], positionals: Mapping[str, bool] | None = None) -> tuple[dict[str, list[str]], bool]:
    """Splits a command line into each field's words, the last ones winning, and whether help is wanted."""
    flags: dict[str, list[str]] = {}
    values: list[str] | None = None
    positionals = positionals or {}
    names = iter(positionals)
    for token in args:
        if token in ("-h", "--help"):
            return flags, True
        if token.startswith("--"):
            name, equals, value = token[2:].partition("=")
            name = name.replace("-", "_")
            values = flags[name + "_" * keyword.iskeyword(name)] = [value] if equals else []
        elif values is None and (name := next(names, None)):
            flags[name] = [token]
            values = flags[name] if positionals[name] else None
        elif values is None:
            raise UserError(f"unexpected argument {token!r}; fields are set with --FIELD VALUE")
        else:
            values.append(token)
    return flags, False


def _convert(config_type: type, flags: Mapping[str, list[str]]) -> dict[str, Any]:
    """Turns the flags' words into typed values by dotted field name."""
    leaves = leaf_types(config_type)
    for name in flags:
        if name not in leaves:
            raise _unknown_field(name, leaves)
    return {name: _convert_one(_label(config_type, name), leaves[name], words) for name, words in flags.items()}


def _convert_one(label: str, hint: Any, words: list[str]) -> Any:
    """Turns the words after one flag into a value of the type `hint`."""
    if hint in (bool, bool | None):
        words = [word.capitalize() for word in words] or ["True"]
    cell = dataclasses.make_dataclass("Cell", [("value", hint)])
    # One word is joined with "=", which lets it start with a dash.
    args = [f"--value={words[0]}"] if len(words) == 1 else ["--value", *words]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(cell, args=args, config=_MARKERS, console_outputs=False).value
    except SystemExit:
        found = f"bad value {' '.join(words)!r}" if words else "no value"
        raise UserError(f"{label}: {found}; expected {describe(hint)}") from None


def _build(config_type: type, base: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Builds a config from `base`, or the type's defaults, with `values` put over it in one go.

    In one go, because a config may check that its fields fit each other.
    """
    hints = init_types(config_type)
    fields = {}
    for field in dataclasses.fields(config_type):
        name = f"{prefix}{field.name}"
        if field.name not in hints:
            continue
        if name in values:
            fields[field.name] = values[name]
        elif dataclasses.is_dataclass(hints[field.name]):
            inner = _default(field) if base is None else getattr(base, field.name)
            fields[field.name] = _build(hints[field.name], inner, values, f"{name}.")
        elif base is not None:
            fields[field.name] = getattr(base, field.name)
        elif is_required(field):
            raise UserError(f"{_label(config_type, name)}: missing; expected {describe(hints[field.name])}")
    try:
        return type(base)(**fields) if base is not None else config_type(**fields)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{_flag(prefix.rstrip('.')) if prefix else 'config'}: {error}") from error


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _unknown_field(name: str, leaves: Mapping[str, Any]) -> UserError:
    """The error for a flag that names no field: the nearest one by its whole name and by its last part."""
    group = [leaf for leaf in leaves if leaf.startswith(f"{name}.")]
    if group:
        return UserError(f"{_flag(name)} is a group of fields; set one of them, such as {_flag(group[0])}")

    def likeness(leaf: str) -> float:
        pairs = [(name, leaf), (name.rpartition(".")[2], leaf.rpartition(".")[2])]
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2

    nearest = max([*leaves, "config"], key=likeness)
    hint = f"did you mean {_flag(nearest)}?" if likeness(nearest) >= 0.6 else "--help lists the fields"
    return UserError(f"unknown field {_flag(name)}; {hint}")


def _one_token(name: str, words: list[str]) -> str:
    if len(words) != 1:
        raise UserError(f"{_flag(name)}: {'one value' if words else 'no value'}; expected one file")
    return words[0]


def _label(config_type: type, name: str) -> str:
    """What a field is called on the command line."""
    return name.upper() if name in _positionals(config_type) else _flag(name)


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_").replace("_", "-")


def _print_help(config_type: type, base: Any, prog: str, description: str) -> None:
    """Prints tyro's help for the typed fields, and exits with code 0."""
    usage = "Start from a recipe with --config FILE (or the name of one in configs/); flags go over it."
    default = {} if base is None else {"default": base}
    tyro.cli(
        config_type,
        prog=prog,
        description=f"{description.splitlines()[0]} {usage}",  # tyro would run the examples' lines together
        args=["--help"],
        config=_MARKERS,
        **default,
    )
