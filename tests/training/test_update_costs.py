"""What an update costs, read from the compiled programs: how FLOPs, memory and program size grow."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig
from nrt_jax.objectives import LossMasks, NRTLossConfig
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.state import create_state
from nrt_jax.training.update import add_gradient, apply_gradient

OPTIMIZER = optax.adam(1e-3)
SHAPE = {"intermediate_size": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}


def abstract_batch(prompts: int, group_size: int, prompt_length: int, length: int) -> LearnerBatch:
    array = jax.ShapeDtypeStruct
    shape, prompt_shape = (prompts, group_size, length), (prompts, prompt_length)
    mask = array(shape, bool)
    return LearnerBatch(
        prompts=Prompts(tokens=array(prompt_shape, jnp.int32), mask=array(prompt_shape, bool)),
        tokens=array(shape, jnp.int32),
        masks=LossMasks(trace=mask, delimiter=mask, reference=mask),
        old_log_probs=array(shape, jnp.float32),
        advantage=array(shape[:2], jnp.float32),
        token_signal=array(shape, jnp.float32),
    )


@functools.cache
def compiled(sizes: tuple[int, int, int, int], *, hidden_size: int = 8, num_layers: int = 1, vocab_size: int = 64):
    """The gradient's program for P, K, X, T, and the optimizer's; nothing of these sizes is ever allocated."""
    config = ModelConfig(hidden_size=hidden_size, num_layers=num_layers, vocab_size=vocab_size, **SHAPE)
    model = Model(config)
    params = model.abstract_params()
    gradient = add_gradient.lower(
        None,
        params,
        None,
        abstract_batch(*sizes),
        jax.ShapeDtypeStruct(sizes[:1], jnp.int32),
        1.0,
        model=model,
        config=NRTLossConfig(),
        length=sizes[-1],
        remat=False,
    )
    state = jax.eval_shape(lambda params: create_state(params, OPTIMIZER), params)
    apply = apply_gradient.lower(state, params, [{}], optimizer=OPTIMIZER)
    return gradient.compile(), apply.compile()


def test_doubling_the_group_costs_less_than_twice_the_flops():
    flops = [compiled((2, group_size, 64, 64))[0].cost_analysis()["flops"] for group_size in (2, 4)]
    # The question's 64 tokens are computed once: of 64 + K 64 tokens they are a third at K = 2.
    assert flops[1] < 1.75 * flops[0]


def test_a_larger_vocabulary_adds_no_buffer_of_tokens_by_vocabulary():
    tokens, added = 8 * 8 * 128, 96_000
    small, large = (compiled((8, 8, 8, 128), vocab_size=v)[0].memory_analysis() for v in (32_000, 128_000))
    grown = large.temp_size_in_bytes - small.temp_size_in_bytes
    assert 0 < grown < tokens * added * 4


def num_instructions(programs) -> int:
    return sum(program.as_text().count(" = ") for program in programs)


def test_the_size_of_the_programs_does_not_depend_on_depth():
    assert num_instructions(compiled((2, 2, 8, 8), num_layers=32)) < 1.5 * num_instructions(
        compiled((2, 2, 8, 8), num_layers=4)
    )


def test_the_optimizer_writes_over_the_state_that_it_is_given():
    memory = compiled((2, 2, 8, 8), num_layers=4)[1].memory_analysis()
    gradient = memory.argument_size_in_bytes / 4  # Beside the parameters and two moments.
    assert memory.alias_size_in_bytes == pytest.approx(3 * gradient, rel=0.01)
    assert memory.temp_size_in_bytes < 0.1 * gradient
