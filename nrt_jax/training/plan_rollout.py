"""What samples on one replica, the policy or a judge: its programs, and what its device keeps beside each of them."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from nrt_jax import parallel
from nrt_jax.data.batch import Prompts
from nrt_jax.models import Model, Params
from nrt_jax.rollout import Rollout, SamplingConfig, engine
from nrt_jax.training.programs import Program, at, compile_program, shape, size_on_device

#: What a device keeps while a program runs that does not take it.
_KEPT = {
    "parameters": (),
    "layout for decoding": (),
    "prefill": ("weights", "groups", "rows"),
    "admission": ("copy", "weights", "rows"),
    "seating": ("copy", "weights"),
    "decoding": ("copy", "groups"),
    "leaving": ("copy",),
    "scoring": ("weights", "groups", "rows"),
}


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A replica, as shapes.

    Attributes:
        model: What samples.
        params: Its copy there.
        sampling: How.
        share: Prompts that it takes.
        prompts: So many of them, as long as they may be.
    """

    model: Model
    params: Params
    sampling: SamplingConfig
    share: int
    prompts: Callable[[int], Prompts]

    @property
    def batch(self) -> int:
        """Prompts that are run, and handed out, at once."""
        return engine.room(self.sampling, self.share)[2]

    @property
    def num_batches(self) -> int:
        """How many of these there are."""
        return -(-self.share // self.batch)

    @property
    def at_home(self) -> SamplingConfig:
        """`sampling`, whose arrays lie beside the parameters."""
        return at(parallel.beside(self.params), self.sampling)


def compile_sampling(sampler: Sampler, found: list[Program]) -> Rollout:
    """Compiles the programs of `engine.stream`.

    Args:
        sampler: The replica.
        found: Gets them, in their order.

    Returns:
        What it hands out at once, as shapes.

    Raises:
        TooLarge: One needs more memory than the device has.
    """
    model, params, sampling, config = sampler.model, sampler.params, sampler.sampling, sampler.at_home
    num_seats, num_places, batch = engine.room(sampling, sampler.share)
    num_batches, waves = sampler.num_batches, sampler.share * sampling.group_size / num_seats

    def add(name, runs, function, *args, **kwargs):
        program = compile_program(name, function, *args, **kwargs)
        found.append(dataclasses.replace(program, runs=runs))
        return program.out

    home = parallel.beside(params)
    number, places = shape((), jnp.int32, home), shape((batch,), jnp.int32, home)
    weights = add("layout for decoding", 1, engine._prepare, model, params)
    groups = new = add("prefill", num_batches, engine._begin, model, params, at(home, sampler.prompts(batch)), config)
    if batch < num_places:
        groups = compile_program("", engine._place, None, new, places, num_places=num_places).out
        add("admission", num_batches, engine._place, groups, new, places, num_places=num_places)
    seats = at(home, _seats(sampling, num_seats, num_places))
    slots, key_impl = sampling.capacity(sampling.max_new_tokens), jax.random.key_impl(jax.random.key(0))
    args = (seats, number, number, slots, key_impl)
    rows, _ = compile_program("", engine._seat, groups, None, *args).out
    rows, shared = add("seating", waves, engine._seat, groups, rows, *args)
    num_steps, num_chunks = sampling.chunk_size, slots // sampling.chunk_size
    args = (model, weights, shared, rows, number, num_steps, config)
    add("decoding", waves * num_chunks, engine._advance, *args, while_trips=num_steps)
    index = shape((num_seats,), jnp.int32, home)
    add("leaving", waves, engine._store, model, weights, groups, rows, index, index, number, config)
    if batch < num_places:
        return compile_program("", engine._take, groups.rollout, places).out
    return groups.rollout


def keep(found: list[Program], sampler: Sampler, *, beside: float) -> list[Program]:
    """The programs of a replica, all of them found, with what its device keeps meanwhile.

    Args:
        found: Of `compile_sampling`, and others of `_KEPT`.
        sampler: The replica.
        beside: Bytes that the device keeps all the time, without those of the copy.
    """
    outputs = {program.name: program.memory.outputs for program in found}
    size = {
        "copy": size_on_device(sampler.params),
        "weights": outputs["layout for decoding"],
        "groups": outputs["prefill"] * engine.room(sampler.sampling, sampler.share)[1] / sampler.batch,
        "rows": outputs["seating"],
    }
    return [program.keep(beside + sum(size[name] for name in _KEPT[program.name])) for program in found]


def _seats(sampling: SamplingConfig, num_seats: int, num_places: int) -> engine.Seats:
    """Who decodes, as shapes."""
    index, flag = shape((num_seats,), jnp.int32), shape((num_seats,), bool)
    num_prompts = min(num_places, num_seats)
    key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.split(jax.random.key(0), num_seats)))
    return engine.Seats(
        source=index,
        is_kept=flag,
        is_row=flag,
        place=index,
        key=key_data,
        prompts=shape((num_prompts,), jnp.int32),
        grid=shape((num_prompts, sampling.group_size), jnp.int32),
        cell=index,
    )
