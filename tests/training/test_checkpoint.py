import dataclasses
import functools
import shutil
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nrt_jax.errors import UserError
from nrt_jax.training.checkpoint import Checkpointer


@functools.partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state"], meta_fields=[])
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
    step: Any
    params: Any
    opt_state: Any


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


def make_state(width=4, dtype=jnp.float32):
    params = {
        "embedding": jax.random.normal(jax.random.key(0), (8, width), dtype),
        "layers": {"q": jax.random.normal(jax.random.key(1), (2, width, 3), jnp.bfloat16)},
    }
    return State(step=jnp.int32(0), params=params, opt_state=OPTIMIZER.init(params))


@functools.partial(jax.jit, donate_argnums=0)
def update(state):
    gradient = jax.tree.map(lambda leaf: jnp.sin(leaf) + 0.1, state.params)
    change, opt_state = OPTIMIZER.update(gradient, state.opt_state, state.params)
    return State(step=state.step + 1, params=optax.apply_updates(state.params, change), opt_state=opt_state)


def as_bits(tree):
    return jax.tree.map(lambda leaf: np.array(leaf).tobytes(), tree)


def test_a_restored_state_is_the_saved_one_bit_for_bit(tmp_path):
    state = update(update(make_state()))
    saved = as_bits(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, state, {"iterator": {"position": 7}})
    with Checkpointer(tmp_path) as checkpointer:
        restored, extra = checkpointer.restore(jax.eval_shape(make_state))
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    assert as_bits(restored) == saved
    assert extra == {"iterator": {"position": 7}}


def test_a_state_may_be_donated_while_it_is_being_saved(tmp_path):
    start = update(make_state(width=50_000))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, start)
        state = update(start)
        for _ in range(4):
            state = update(state)
        restored, _ = checkpointer.restore(state)
    assert as_bits(restored) == as_bits(update(make_state(width=50_000)))


def test_a_run_that_stops_and_resumes_ends_where_one_without_a_stop_does(tmp_path):
    straight = make_state()
    for _ in range(6):
        straight = update(straight)
    state = make_state()
    for _ in range(3):
        state = update(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, state)
    with Checkpointer(tmp_path) as checkpointer:
        state, _ = checkpointer.restore(jax.eval_shape(make_state))
    for _ in range(3):
        state = update(state)
    assert as_bits(state) == as_bits(straight)


def test_a_state_is_restored_in_the_sharding_asked_for(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make_state),
    )
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, make_state())
        restored, _ = checkpointer.restore(abstract)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(restored))


def test_the_last_checkpoints_are_kept(tmp_path):
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        for step in (1, 2, 3):
            checkpointer.save(step, {"a": jnp.full(2, step)}, {"step": step})
        checkpointer.wait()
        assert checkpointer.latest_step() == 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
        restored, extra = checkpointer.restore({"a": jnp.zeros(2, jnp.int32)}, step=2)
    assert restored["a"].tolist() == [2, 2] and extra == {"step": 2}


def test_a_step_that_is_saved_already_is_left_as_it_is(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.ones(2)})
        checkpointer.save(1, {"a": jnp.zeros(2)})
        assert checkpointer.restore({"a": jnp.zeros(2)})[0]["a"].tolist() == [1, 1]


def test_looking_for_a_checkpoint_creates_nothing(tmp_path):
    with Checkpointer(tmp_path / "none") as checkpointer:
        assert checkpointer.latest_step() is None
        with pytest.raises(UserError, match=r"none': no checkpoint here"):
            checkpointer.restore(make_state())
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_cut_short_does_not_count(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.ones(2)})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            {"a": jnp.zeros(3), "b": jnp.zeros(1)},
            r"a is float32\[2\] there, but the config makes it float32\[3\]",
        ),
        ({"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(1)}, r"a is float32\[2\] there, .* bfloat16\[2\]"),
        ({"a": jnp.zeros(2)}, r"b is float32\[1\] there, but the config makes it nothing"),
        ({"a": jnp.zeros(2), "b": jnp.zeros(1), "c": jnp.zeros(1)}, r"c is nothing there"),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_the_array(tmp_path, wanted, message):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.zeros(2), "b": jnp.zeros(1)})
        with pytest.raises(UserError, match=message):
            checkpointer.restore(wanted)


@pytest.mark.parametrize(
    "lost", ["state/_METADATA", "state/manifest.ocdbt", "state/d", "extra/metadata", "extra", "state"]
)
def test_a_damaged_checkpoint_is_one_clear_line(tmp_path, lost):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.zeros(2)})
    path = tmp_path / "1" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError) as error:
        checkpointer.restore({"a": jnp.zeros(2)})
    assert "\n" not in str(error.value) and str(error.value).startswith(f"checkpoint '{tmp_path}/1': ")
