import dataclasses
import enum
import json
import pathlib
from typing import Literal

import pytest

from nrt_jax.errors import UserError
from nrt_jax.training.config_io import from_dict, leaf_types, to_dict


class Scale(enum.Enum):
    std = 1
    none = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    theta: float = 1e4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    name: str
    steps: int = 3
    resume: bool = False
    clip: float | None = None
    data: pathlib.Path | None = None
    mode: Literal["gm", "ws"] = "gm"
    scale: Scale = Scale.std
    seeds: tuple[int, ...] = (0,)
    betas: tuple[float, float] = (0.9, 0.95)
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    rope: Rope = Rope()
    draft: Rope | None = None


FULL = Config(
    name="x",
    steps=5,
    resume=True,
    clip=0.5,
    data=pathlib.Path("a/b.jsonl"),
    mode="ws",
    scale=Scale.none,
    seeds=(1, 2),
    betas=(0.1, 0.2),
    weights={"a": 1.0},
    rope=Rope(theta=5.0),
    draft=Rope(theta=6.0),
)


@pytest.mark.parametrize("config", [FULL, Config(name="y")])
def test_a_config_survives_json(config):
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


def test_absent_fields_keep_their_defaults_and_an_int_serves_as_a_float():
    assert from_dict(Config, {"name": "x", "clip": 1, "rope": {}}) == Config(name="x", clip=1.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name is missing; expected str"),
        ({"name": "x", "stepz": 3}, "field of config: unknown value 'stepz'.* did you mean 'steps'"),
        ({"name": "x", "rope": {"thet": 3}}, "field of config: rope: unknown value 'thet'"),
        ({"name": "x", "steps": "3"}, "config: steps: bad value '3'; expected int"),
        ({"name": "x", "steps": True}, "config: steps: bad value True; expected int"),
        ({"name": "x", "resume": 1}, "config: resume: bad value 1; expected True or False"),
        ({"name": "x", "mode": "hm"}, "config: mode: bad value 'hm'; expected one of 'gm', 'ws'"),
        ({"name": "x", "scale": "std_"}, "config: scale: bad value 'std_'; expected one of std, none"),
        ({"name": "x", "betas": [1]}, r"config: betas: bad value \[1\]"),
        ({"name": "x", "rope": 3}, "config: rope: bad value 3; expected an object"),
        ([], "expected an object"),
    ],
)
def test_values_that_do_not_fit_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        from_dict(Config, values)


def test_leaves_are_named_by_their_dotted_path():
    leaves = leaf_types(Config)
    assert leaves["rope.theta"] is float and leaves["steps"] is int and "rope" not in leaves
