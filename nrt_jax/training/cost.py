"""What a program computes and moves, counted in its jaxpr: XLA's own cost analysis counts a loop's body once.

Matrix products are counted, kernels' own ones too; what lies between them is fused into them on an accelerator.
"""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from jax.extend import core

_COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of all devices together.

    Attributes:
        flops: Of matrix products.
        bytes: Their operands and results, each moved once.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.flops * times, self.bytes * times)


def count(jaxpr: core.Jaxpr, while_trips: int) -> Cost:
    """The cost of one run.

    Args:
        jaxpr: Of the program.
        while_trips: How often the body of a loop runs whose end depends on data.
    """
    return sum((_count_equation(equation, while_trips) for equation in jaxpr.eqns), Cost())


def _count_equation(equation: core.JaxprEqn, while_trips: int) -> Cost:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        contracting = params["dimension_numbers"][0][0]
        depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracting)
        return Cost(2.0 * depth * equation.outvars[0].aval.size, _bytes((*equation.invars, *equation.outvars)))
    inner = [count(jaxpr, while_trips) for jaxpr in _jaxprs(params)]
    if name == "pallas_call":
        # Blocks are read from memory as often as the grid asks for them; once is what a kernel is after.
        flops = sum(cost.flops for cost in inner) * math.prod(params["grid_mapping"].grid)
        return Cost(flops, _bytes((*equation.invars, *equation.outvars)))
    if name == "cond":
        return max(inner, key=lambda cost: cost.flops)
    times = {"scan": params.get("length"), "while": while_trips}.get(name, 1)
    if name == "shard_map":  # Its jaxpr is one device's.
        times = params["mesh"].size
    return sum(inner, Cost()) * times


def _jaxprs(params: dict[str, Any]) -> Iterable[core.Jaxpr]:
    """All jaxprs among an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _bytes(variables: Iterable[Any]) -> float:
    """0 for what has no shape, such as tokens of effects."""
    return float(sum(v.aval.size * v.aval.dtype.itemsize for v in variables if hasattr(v.aval, "dtype")))


def collectives(text: str) -> dict[str, int]:
    """How many of each kind compiled HLO has; one in a loop counts once."""
    found: dict[str, int] = {}
    for name in _COLLECTIVE.findall(text):
        found[name] = found.get(name, 0) + 1
    return found
