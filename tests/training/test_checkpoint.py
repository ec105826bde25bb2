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
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax import checksums
from nrt_jax.errors import UserError
from nrt_jax.training.checkpoint import Checkpointer, Damaged


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


def steps(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ({}, ["4", "5"]),
        ({1: 0.5, 2: 0.9, 3: 0.1}, ["2", "4", "5"]),
        ({1: 0.5, 2: 0.5}, ["2", "4", "5"]),
        ({1: 0.5, 5: 0.6}, ["4", "5"]),
    ],
)
def test_the_best_checkpoint_stays_beside_the_last_ones_also_in_a_run_that_resumes(tmp_path, scores, kept):
    for step in range(1, 6):
        with Checkpointer(tmp_path, keep=2, best=1) as checkpointer:
            checkpointer.save(step, {"a": jnp.full(2, step)}, score=scores.get(step))
    assert steps(tmp_path) == kept


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, make_state(), {"data": {"step": 1}})
    return folder, sorted(path for path in (folder / "1").rglob("*") if path.is_file())


@settings(max_examples=40)
@given(data=st.data())
def test_a_flipped_bit_or_a_lost_tail_is_noticed_or_changes_nothing(saved, data):
    folder, files = saved
    file = data.draw(st.sampled_from([path for path in files if path.stat().st_size]))
    whole = file.read_bytes()
    where = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        file.write_bytes(whole[:where])
    else:
        file.write_bytes(whole[:where] + bytes([whole[where] ^ 1 << data.draw(st.integers(0, 7))]) + whole[where + 1 :])
    try:
        with Checkpointer(folder) as checkpointer:
            state, extra = checkpointer.restore(jax.eval_shape(make_state))
        assert as_bits(state) == as_bits(make_state()) and extra == {"data": {"step": 1}}
    except Damaged as error:
        assert ("\n" not in str(error) and str(file) in str(error)) or file.name == "checksums.json"
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "text", ["[]", '""', "null", "3", '{"a": 1}', "[" * 5000, '["a"]', '{"\\u0000": ""}', '{"/dev/zero": ""}']
)
def test_a_list_of_checksums_that_is_none_is_damage(tmp_path, text):
    checksums.write(tmp_path)
    assert checksums.find_damage(tmp_path) is None
    (tmp_path / checksums.FILE).write_text(text)
    assert "\n" not in checksums.find_damage(tmp_path)


def damage(folder):
    """Flips one bit of every data file of a step."""
    for file in (folder / "state").rglob("d/*"):
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def test_damaged_checkpoints_are_named_and_set_aside_and_the_last_good_one_is_used(tmp_path):
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"a": jnp.full(2, step)}, {"step": step})
    damage(tmp_path / "2")
    damage(tmp_path / "3")
    lines = []
    with Checkpointer(tmp_path, keep=3) as checkpointer:
        state, extra = checkpointer.restore_last_good({"a": jnp.zeros(2, jnp.int32)}, lines.append)
        assert state["a"].tolist() == [1, 1] and extra == {"step": 1}
        assert len(lines) == 2 and all("\n" not in line for line in lines)
        assert lines[0].startswith(f"checkpoint '{tmp_path}/3': is damaged ({tmp_path}/3/state/")
        assert lines[0].endswith("has changed since it was written); set aside, step 1 is used instead")
        checkpointer.save(2, {"a": jnp.full(2, 20)})
    assert steps(tmp_path) == ["1", "2", "2.damaged", "3.damaged"]
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore({"a": jnp.zeros(2, jnp.int32)})[0]["a"].tolist() == [20, 20]


def test_if_no_checkpoint_is_good_that_is_one_line_and_nothing_moves(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore_last_good({"a": jnp.zeros(2)}, print) is None
        for step in (1, 2):
            checkpointer.save(step, {"a": jnp.zeros(2)})
    damage(tmp_path / "1")
    damage(tmp_path / "2")
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(UserError) as error:
        checkpointer.restore_last_good({"a": jnp.zeros(2)}, print)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"checkpoint '{tmp_path}/2': is damaged")
    assert str(error.value).endswith("and no earlier one is whole; start again with another --workdir")
    assert steps(tmp_path) == ["1", "2"]


def test_a_checkpoint_of_another_config_is_not_taken_for_a_damaged_one(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.zeros(2)})
        checkpointer.save(2, {"a": jnp.zeros(2)})
        with pytest.raises(UserError, match="but the config makes it"):
            checkpointer.restore_last_good({"a": jnp.zeros(3)}, print)
    assert steps(tmp_path) == ["1", "2"]


def test_what_a_crash_left_half_written_is_removed(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"a": jnp.zeros(2)})
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, {"a": jnp.ones(2)})
        assert checkpointer.restore({"a": jnp.zeros(2)})[0]["a"].tolist() == [1, 1]
    assert steps(tmp_path) == ["1", "2"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "opt_state", "reference"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class StateWithReference(State):
    reference: Any = None


def test_a_field_that_a_run_does_not_have_leaves_no_trace(tmp_path):
    """A checkpoint from before there was such a field is restored, and one that lacks what the run needs is not."""
    state = make_state()
    fields = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
    with Checkpointer(tmp_path) as checkpointer:
        restored, _ = checkpointer.restore(StateWithReference(**fields))
        chex.assert_trees_all_equal(restored, StateWithReference(**fields))
        with pytest.raises(UserError, match=r"reference\.w is nothing there"):
            checkpointer.restore(StateWithReference(**fields, reference={"w": jnp.ones(2)}))
