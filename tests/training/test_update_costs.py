"""What an update costs, read from the compiled programs: how FLOPs, memory and program size grow."""

import contextlib

import jax
import jax.numpy as jnp
import optax
import pytest

from nrt_jax import parallel
from nrt_jax.data import Prompts
from nrt_jax.models import Model, ModelConfig
from nrt_jax.objectives import LossMasks, NRTLossConfig
from nrt_jax.training.learner import LearnerBatch
from nrt_jax.training.state import abstract_state
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


def shape(num_layers: int = 1, vocab_size: int = 64) -> Model:
    return Model(ModelConfig(hidden_size=8, num_layers=num_layers, vocab_size=vocab_size, **SHAPE))


def gradient_program(sizes: tuple[int, int, int, int], mesh=None, **options):
    """The program of a gradient of P, K, X, T; nothing of these sizes is ever allocated."""
    model = shape(**options)
    params = model.abstract_params()
    if mesh:
        placed = parallel.shardings(model.logical_axes(), params, mesh)
        params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed)
    with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
        lowered = add_gradient.lower(
            None,
            params,
            None,
            abstract_batch(*sizes),
            jax.ShapeDtypeStruct(sizes[:1], jnp.int32),
            1.0,
            model=model,
            config=NRTLossConfig(),
            length=sizes[-1],
            remat="none",
        )
        return lowered.compile()


def optimizer_program(**options):
    params = shape(**options).abstract_params()
    state = abstract_state(params, OPTIMIZER)
    return apply_gradient.lower(state, params, [{"loss": 1.0}], optimizer=OPTIMIZER).compile()


def test_doubling_the_group_does_not_compute_the_question_again():
    """X = 8 T: at K = 2 the question is four fifths of the tokens."""
    flops = [gradient_program((2, k, 256, 32)).cost_analysis()["flops"] for k in (2, 4)]
    assert flops[1] < 1.6 * flops[0]


def test_a_larger_vocabulary_adds_no_buffer_of_tokens_by_vocabulary():
    """Not even one of two bytes an entry: what grows are the logits of a chunk of tokens."""
    tokens, added = 8 * 8 * 128, 96_000
    small, large = (gradient_program((8, 8, 8, 128), vocab_size=v).memory_analysis() for v in (32_000, 128_000))
    grown = large.temp_size_in_bytes - small.temp_size_in_bytes
    assert 0 < grown < tokens * added * 2


def test_a_vocabulary_that_does_not_divide_is_split_as_well():
    """As a delimiter makes it. Whole on each device of four, its matrix would take 3 to 4 times as much."""
    mesh = parallel.Layout.of(parallel.MeshConfig(fsdp=2, tensor=4)).train
    even, odd = (gradient_program((2, 2, 8, 8), mesh, vocab_size=v).memory_analysis() for v in (32_000, 32_001))
    assert odd.argument_size_in_bytes < 1.05 * even.argument_size_in_bytes
    assert odd.output_size_in_bytes < 1.05 * even.output_size_in_bytes
    assert odd.temp_size_in_bytes < 1.5 * even.temp_size_in_bytes


def num_instructions(num_layers: int) -> int:
    programs = gradient_program((2, 2, 8, 8), num_layers=num_layers), optimizer_program(num_layers=num_layers)
    return sum(program.as_text().count(" = ") for program in programs)


def test_the_size_of_the_update_does_not_depend_on_depth():
    """32 layers are a loop, 4 layers one turn of it."""
    assert num_instructions(32) < 1.5 * num_instructions(4)


def test_the_optimizer_writes_over_the_state_that_it_is_given():
    memory = optimizer_program(vocab_size=4096).memory_analysis()
    gradient = memory.argument_size_in_bytes / 4  # Beside the parameters and two moments.
    assert memory.alias_size_in_bytes == pytest.approx(3 * gradient, rel=0.01)
    assert memory.temp_size_in_bytes < 1.1 * gradient
