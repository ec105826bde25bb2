"""Typed configs as JSON values and back: `config.json` of a run's folder, and the fields a command offers.

A config is a frozen dataclass of numbers, strings, paths, enums, tuples, dicts and further configs.
"""

import dataclasses
import enum
import math
import pathlib
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from nrt_jax.errors import UserError, unknown_name

ConfigT = TypeVar("ConfigT")


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a config into JSON values: a nested config is a dict, a tuple a list, a path or an enum a string.

    Raises:
        TypeError: a field holds something that JSON cannot say: a programmer's mistake, not a user's.
    """
    return {field.name: _encode(getattr(config, field.name)) for field in dataclasses.fields(config) if field.init}


def from_dict(config_type: type[ConfigT], values: Mapping[str, Any], *, where: str = "config") -> ConfigT:
    """Builds a config from the JSON values of `to_dict`; a field that is absent keeps its default.

    Args:
        config_type: the dataclass to build.
        values: JSON values by field name.
        where: what `values` is called in error messages, such as a file's path.

    Raises:
        UserError: an unknown field, a value of another type, or a required field that is absent.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: bad value {values!r}; expected an object with the fields of {config_type.__name__}")
    hints = init_types(config_type)
    for name in values:
        if name not in hints:
            raise unknown_name(f"field of {where}", name, hints)
    decoded = {name: _decode(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    for field in dataclasses.fields(config_type):
        if field.name in hints and field.name not in values and is_required(field):
            raise UserError(f"{where}: {field.name} is missing; expected {describe(hints[field.name])}")
    return config_type(**decoded)


def init_types(config_type: type) -> dict[str, Any]:
    """Returns the resolved type of each field that the constructor takes, in order."""
    hints = typing.get_type_hints(config_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_type) if field.init}


def leaf_types(config_type: type, prefix: str = "") -> dict[str, Any]:
    """Returns the type of each field that is not itself a config, by dotted name (`optimizer.betas`)."""
    leaves = {}
    for name, hint in init_types(config_type).items():
        if dataclasses.is_dataclass(hint):
            leaves |= leaf_types(hint, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = hint
    return leaves


def is_required(field: dataclasses.Field) -> bool:
    """Says whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def describe(hint: Any) -> str:
    """Names a type as an error message does: `float`, `int or None`, `one of 'nrt', 'grpo'`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "None"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(describe, args))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(hint.__members__)
    if isinstance(hint, type) and origin is None:
        return "True or False" if hint is bool else hint.__name__
    return str(hint).replace("typing.", "")


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _encode(item) for key, item in value.items()}
    raise TypeError(f"a config cannot hold {value!r} of type {type(value).__name__}")


def _decode(hint: Any, value: Any, where: str) -> Any:
    """Turns one JSON value into the type `hint`, or raises UserError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where=where)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _first_that_fits([arg for arg in args if arg is not type(None)], value, where, hint)
    if origin is typing.Literal and value in args:
        return value
    if origin is tuple and isinstance(value, list) and args[1:] == (...,):
        return tuple(_decode(args[0], item, where) for item in value)
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_decode(arg, item, where) for arg, item in zip(args, value, strict=True))
    if origin is list and isinstance(value, list):
        return [_decode(args[0], item, where) for item in value]
    if origin in (dict, Mapping, typing.get_origin(Mapping[str, Any])) and isinstance(value, Mapping):
        return {key: _decode(args[1], item, where) for key, item in value.items()}
    if isinstance(hint, type) and origin is None:
        if issubclass(hint, enum.Enum) and isinstance(value, str) and value in hint.__members__:
            return hint[value]
        if issubclass(hint, pathlib.PurePath) and isinstance(value, str):
            return hint(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if hint is float and is_number and not math.inf > abs(value) > sys.float_info.max:  # no float for 10**400
            return float(value)
        if isinstance(value, hint) and isinstance(value, bool) <= (hint is bool):
            return value
    raise UserError(f"{where}: bad value {value!r}; expected {describe(hint)}")


def _first_that_fits(hints: list[Any], value: Any, where: str, union: Any) -> Any:
    """Decodes `value` as the first member of a union that takes it."""
    errors = []
    for hint in hints:
        try:
            return _decode(hint, value, where)
        except UserError as error:
            errors.append(error)
    raise (errors[0] if len(errors) == 1 else UserError(f"{where}: bad value {value!r}; expected {describe(union)}"))
