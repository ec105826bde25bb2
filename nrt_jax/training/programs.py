"""A program compiled ahead of time, for devices that may not be here: what it takes of each of them."""

import dataclasses
import math
import re
from typing import Any

import jax

from nrt_jax import parallel
from nrt_jax.parallel.topology import Chip, quiet
from nrt_jax.training.cost import Cost, collectives, count

_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}
_TOO_LARGE = re.compile(r"\((\d+(?:\.\d+)?)([KMGT]?)\) exceeds available|Used (\d+(?:\.\d+)?)([KMGT]?) of")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Attributes:
        arguments: What the program takes.
        outputs: What it makes, in the place of donated arguments too.
        aliased: The part of the outputs that is in the place of donated arguments.
        temporaries: What it needs meanwhile.
        beside: What is kept on the device that the program does not take.
    """

    arguments: float
    outputs: float
    aliased: float
    temporaries: float
    beside: float = 0.0

    @property
    def peak(self) -> float:
        """What must fit at once."""
        return self.beside + self.arguments + self.outputs - self.aliased + self.temporaries


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        name: What it does.
        memory: On each device; only temporaries where the compiler found them too large for a device.
        cost: One run's, on each device.
        collectives: How many of each kind, one in a loop counted once; None where the program cannot be read.
        out: Its outputs as shapes, laid out; None where it is too large.
        runs: How often a step runs it.
        moved: Bytes that a device gets from others in one run, as far as they are parameters.
    """

    name: str
    memory: Memory
    cost: Cost
    collectives: dict[str, int] | None
    out: Any = dataclasses.field(repr=False)
    runs: float = 1.0
    moved: float = 0.0

    def keep(self, size: float) -> "Program":
        """The same where so many bytes are kept that it does not take."""
        return dataclasses.replace(self, memory=dataclasses.replace(self.memory, beside=size))

    @property
    def bytes(self) -> float:
        """What one run reads and writes on each device."""
        return max(self.cost.bytes, self.memory.arguments + self.memory.outputs)

    def seconds(self, chip: Chip) -> float:
        """What one run takes at least: the slowest of arithmetic, memory and links (the roofline)."""
        return max(self.cost.flops / chip.flops, self.bytes / chip.bandwidth, self.moved / chip.links)


class TooLarge(Exception):
    """The compiler found that a program alone needs more memory than the device has."""

    def __init__(self, program: Program):
        super().__init__(program.name)
        self.program = program


def compile_program(name: str, function: Any, *args: Any, while_trips: int = 1, **kwargs: Any) -> Program:
    """Compiles a jitted function for the devices that its first array lies on.

    Args:
        name: Of the result.
        function: From `jax.jit`.
        *args: Its arguments: `jax.ShapeDtypeStruct`s with shardings for arrays.
        while_trips: As in `cost.count`.
        **kwargs: More of its arguments.

    Raises:
        TooLarge: It needs more memory than the device has.
    """
    arrays = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, jax.ShapeDtypeStruct)]
    with parallel.on(arrays), quiet():
        traced = function.trace(*args, **kwargs)
        num_devices = len(arrays[0].sharding.device_set)
        cost = count(traced.jaxpr.jaxpr, while_trips) * (1 / num_devices)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            needed = _TOO_LARGE.search(str(error))
            if needed is None:
                raise
            number, unit = (x for x in needed.groups() if x is not None)
            memory = Memory(0, 0, 0, temporaries=float(number) * _UNITS[unit])
            raise TooLarge(Program(name, memory, cost, None, None)) from error
    found = compiled.memory_analysis()
    memory = Memory(
        # Compiled programs leave out what they do not read, such as the head in prefill; it stays where it is.
        arguments=max(found.argument_size_in_bytes, size_on_device(arrays)),
        outputs=found.output_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
    )
    try:
        with quiet():  # It says at length that it cannot.
            moves = collectives(compiled.as_text() or "")
    except jax.errors.JaxRuntimeError:  # libtpu prints no program that has a kernel of its own in it.
        moves = None
    out = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        traced.out_info,
        compiled.output_shardings,
    )
    return Program(name, memory, cost, moves, out)


def shape(dimensions: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding | None = None):
    """An array that is not here."""
    return jax.ShapeDtypeStruct(dimensions, dtype, sharding=sharding)


def at(sharding: jax.sharding.Sharding, tree: Any) -> Any:
    """Arrays as shapes, all laid out so."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def size_on_device(tree: Any) -> float:
    """Bytes of the parts of arrays that one device has."""
    leaves = jax.tree.leaves(tree)
    return float(sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))
