"""One device, or eight laid out in any way: the same tokens, losses and parameters; what lies where, and what moves."""

import functools
import re
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nrt_jax import parallel
from nrt_jax.errors import UserError
from nrt_jax.models import KVCache, Model, ModelConfig, attention, backends
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig
from nrt_jax.parallel import Layout, MeshConfig
from nrt_jax.parallel.mesh import without_spare
from nrt_jax.rollout import engine
from nrt_jax.training import reference
from nrt_jax.training.checkpoint import Checkpointer
from nrt_jax.training.collect import collect
from nrt_jax.training.config import ReferenceConfig, RewardConfig, RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig, make_optimizer
from nrt_jax.training.state import abstract_state, create_state
from nrt_jax.training.update import update
from tests.fixtures_model import VOCAB, random_batch, sampling

#: As after a delimiter was added: two devices divide it, four and eight do not.
ODD_VOCAB = VOCAB + 2 - VOCAB % 4
MODEL = Model(
    ModelConfig(
        vocab_size=ODD_VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=12,
    )
)
#: Each once as training, and between them replicas of two devices and of four, more than there are KV heads.
MESHES = {
    "8x1x1": MeshConfig(8, 1, 1, decode_tensor=2),
    "1x8x1": MeshConfig(1, 8, 1, decode_tensor=4),
    "2x2x2": MeshConfig(2, 2, 2),
    "1x2x4": MeshConfig(1, 2, 4),
}
# Adam divides by the gradient's size: an eps near it keeps rounding as small as it is.
OPTIMIZER = make_optimizer(OptimizerConfig(learning_rate=1e-2, eps=1e-3), 10)


@functools.cache
def initial():
    return jax.tree.map(lambda x: 2.0 * x if x.ndim > 1 else x, MODEL.init(jax.random.key(0)))


@functools.cache
def layout_of(name):
    return Layout.of(MESHES[name])


def placed(name):
    """The params laid out for training."""
    return layout_of(name).place(initial(), MODEL.logical_axes())


def questions():
    return random_batch(2, prompt_lengths=(8, 3, 5, 7, 1, 2, 8, 4), answer_lengths=(4, 2, 1, 3, 4, 1, 2, 2))


@functools.cache
def collected(name=None):
    """A rollout of eight prompts with its rewards; by name, on the replicas of a mesh."""
    learner_batch, outcome = collect(
        MODEL,
        layout_of(name).copies(placed(name), MODEL.logical_axes()) if name else initial(),
        questions(),
        jax.random.key(1),
        sampling(group_size=2, chunk_size=5, max_new_tokens=5),
        reward_config=RewardConfig(),
        advantage_config=AdvantageConfig(scale="none"),
        loss_config=NRTLossConfig(),
        max_length=1000,
    )
    return jax.device_get((learner_batch, outcome.replace(log_probs=None, base_log_probs=None)))


@functools.cache
def updated(name=None, micro_batches=1):
    """The state after one update with the batch that one device collected, and what it says."""
    params = placed(name) if name else initial()
    state = create_state(jax.tree.map(jnp.copy, params), OPTIMIZER)
    return update(
        state,
        collected()[0],
        model=MODEL,
        optimizer=OPTIMIZER,
        config=NRTLossConfig(),
        micro_batches=micro_batches,
    )


@pytest.mark.parametrize("name", MESHES)
def test_replicas_sample_the_same_tokens_and_find_the_same_rewards(name):
    (batch, outcome), (expected, expected_outcome) = collected(name), collected()
    np.testing.assert_array_equal(batch.tokens, expected.tokens)
    assert len(np.unique(np.asarray(outcome.trace_length))) > 2
    chex.assert_trees_all_close(batch, expected, atol=1e-5)
    chex.assert_trees_all_close(outcome, expected_outcome, atol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_update_is_that_of_one_device(name):
    (state, metrics), (expected, expected_metrics) = updated(name), updated()
    chex.assert_trees_all_close(*jax.device_get((state, expected)), atol=1e-5)
    chex.assert_trees_all_close(*jax.device_get((metrics, expected_metrics)), atol=1e-5)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), *jax.device_get((state.params, initial())))
    assert all(distance > 1e-3 for distance in jax.tree.leaves(moved))


@pytest.mark.parametrize("name", MESHES)
def test_parameters_and_moments_are_split_and_stay_so(name):
    """By the sizes of the mesh, where they divide; KV heads, two, are whole on a mesh of four in that direction."""
    mesh, state = MESHES[name], updated(name)[0]
    kv_heads = 2 // mesh.tensor if mesh.tensor < 4 else 2
    shapes = {
        "q": (1, 32 // mesh.fsdp, 4 // mesh.tensor, 12),
        "k": (1, 32 // mesh.fsdp, kv_heads, 12),
        "down": (1, 48 // mesh.tensor, 32 // mesh.fsdp),
        "mlp_norm": (1, 32 // mesh.fsdp),
    }
    (moments,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=is_adam) if is_adam(part))
    for tree in (state.params, moments.mu, moments.nu):
        for leaf, shape in shapes.items():
            assert {shard.data.shape for shard in tree["layers"][leaf].addressable_shards} == {shape}, leaf
        table = (ODD_VOCAB, 32 // 8) if mesh.tensor == 4 else (ODD_VOCAB // mesh.tensor, 32 // mesh.fsdp)
        assert {shard.data.shape for shard in tree["embedding"].addressable_shards} == {table}
    before = jax.tree.map(lambda x: x.sharding, create_state(placed(name), OPTIMIZER))
    assert jax.tree.map(lambda x: x.sharding, state) == before  # Or else the next update would be compiled anew.


def test_the_reference_scores_and_follows_on_a_mesh_as_on_one_device():
    def asked(params):
        state = create_state(jax.tree.map(jnp.copy, params), OPTIMIZER, with_reference=True)
        state = state.replace(params=jax.tree.map(lambda x: 2 * x, state.params))
        before = jax.tree.map(lambda x: x.sharding, state)
        state = reference.follow(ReferenceConfig("ema", decay=0.5), state, 1)
        assert jax.tree.map(lambda x: x.sharding, state) == before
        batch = jax.device_put(collected()[0], parallel.beside(params))
        policies = (reference.Policy(MODEL, state.reference, None), reference.initial_policy(MODEL, params, None))
        scores = [reference.score_completions(policy, batch, 1.0, num_parts=2) for policy in policies]
        where = np.asarray(batch.masks.trace | batch.masks.reference)
        return jax.device_get(state.reference), [np.where(where, x, 0.0) for x in scores]

    (average, scores), (expected, expected_scores) = asked(placed("2x2x2")), asked(initial())
    chex.assert_trees_all_close(average, expected, atol=1e-6)
    chex.assert_trees_all_close(scores, expected_scores, atol=1e-4)
    assert np.abs(scores[0] - scores[1]).max() > 0.1


def is_adam(x):
    return hasattr(x, "mu")


def test_micro_batches_add_up_on_a_mesh():
    (state, metrics), (expected, expected_metrics) = updated("2x2x2", micro_batches=2), updated()
    chex.assert_trees_all_close(*jax.device_get((state, expected)), atol=1e-5)
    np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], atol=1e-5)


@pytest.mark.parametrize("name", ["8x1x1", "1x2x4"])
@pytest.mark.parametrize("size", [1, 2])
def test_each_replica_holds_the_whole_policy_and_no_other_device(name, size):
    layout = Layout.of(MeshConfig(**vars(MESHES[name]) | {"decode_tensor": size}))
    copies = layout.copies(layout.place(initial(), MODEL.logical_axes()), MODEL.logical_axes())
    assert len(copies) == 8 // size
    found = []
    for copy in copies:
        chex.assert_trees_all_equal(*jax.device_get((copy, initial())))
        (devices,) = {frozenset(leaf.sharding.device_set) for leaf in jax.tree.leaves(copy)}
        found += devices
    assert sorted(device.id for device in found) == list(range(8))
    q = copies[-1]["layers"]["q"].addressable_shards
    assert {shard.data.shape for shard in q} == {(1, 32, 4 // size, 12)}


@pytest.fixture(scope="module")
def decode_programs():
    """The compiled text of a chunk of decoding, by the devices of a replica."""
    advance, found = engine._advance, {}

    def compiled(*args):
        size = jax.sharding.get_abstract_mesh().size
        if size not in found:
            found[size] = advance.lower(*args).compile().as_text()
        return advance(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_advance", compiled)
        collected.cache_clear()
        for name in ("2x2x2", "1x2x4"):
            collected(name)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_no_parameter_is_gathered_while_decoding(decode_programs, size):
    """What moves in the loop's body is smaller than the smallest matrix, k's 32 x 24: activations of 4 or 8 rows."""
    text = decode_programs[size]
    names = re.findall(r" while\(.*body=%([\w.-]+)", text)  # Of decoding, and of the generator of random numbers.
    pattern = rf"^%(?:{'|'.join(map(re.escape, names))}) .*?^}}"
    body = "\n".join(re.findall(pattern, text, re.MULTILINE | re.DOTALL))
    moved = re.findall(r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", body)
    assert len(moved) > 1 and " all-reduce(" in body
    for shape in re.findall(r"\[([\d,]*)\]", " ".join(moved)):
        assert np.prod([int(n) for n in shape.split(",")]) < 32 * 24, shape


@pytest.mark.parametrize("name", ["2x2x2", "1x2x4"])
def test_a_kernel_of_one_device_serves_each_ones_prompts_and_heads(name):
    """Plain attention in a kernel's place, and its gradients; of two KV heads, each of four devices has one."""
    num_prompts, group_size, length, head_dim = 4, 2, 3, 4
    keys = jax.random.split(jax.random.key(0), 5)
    q = jax.random.normal(keys[0], (num_prompts, group_size, length, 4, head_dim))

    def cache(key, rows):
        k, v = jax.random.normal(key, (2, num_prompts, 2, rows, length, head_dim))
        return KVCache(k=k, v=v, positions=jnp.broadcast_to(jnp.arange(length), (num_prompts, rows, length)))

    segments = [cache(keys[1], 1), cache(keys[2], group_size)]
    positions = segments[1].positions + length
    segments[1] = segments[1].replace(positions=positions)
    weight = jax.random.normal(keys[3], q.shape)

    def kernel(q, positions, segments):
        return attention.attend(q, positions, segments, None)

    def loss(attend, q, k):
        return jnp.sum(weight * attend(q, positions, [segments[0].replace(k=k), segments[1]]))

    gradient = jax.grad(loss, argnums=(1, 2))
    expected = gradient(kernel, q, segments[0].k)
    with jax.set_mesh(layout_of(name).train):
        found = jax.jit(functools.partial(gradient, functools.partial(backends.on_mesh, kernel)))(q, segments[0].k)
    chex.assert_trees_all_close(*jax.device_get((found, expected)), atol=1e-5)


def test_checkpoint_is_restored_on_another_mesh(tmp_path):
    state, _ = updated("2x2x2")
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state)
        for params in (placed("1x8x1"), initial()):
            abstract = abstract_state(params, OPTIMIZER)
            restored, _ = checkpointer.restore(abstract)
            chex.assert_trees_all_equal(*jax.device_get((restored, state)))
            assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)
            assert restored.params["layers"]["q"].sharding == params["layers"]["q"].sharding


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(fsdp=0), "mesh.fsdp: 0 cannot work; expected a number above 0"),
        (MeshConfig(data=3, fsdp=3), "mesh.data x mesh.fsdp x mesh.tensor: 9 cannot work; expected at most 8"),
        (MeshConfig(fsdp=4, decode_tensor=3), "mesh.decode_tensor: 3 cannot work; expected a divisor of 4"),
    ],
)
def test_meshes_that_cannot_be_are_refused(mesh, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Layout.of(mesh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": RolloutConfig(prompts=12)}, "rollout.prompts: 12 cannot work; expected a multiple of 8 = "),
        ({"rollout": RolloutConfig(prompts=16, devices=2)}, "rollout.devices: 2 cannot work; expected 1 beside a mesh"),
    ],
)
def test_configs_that_do_not_fit_their_mesh_are_refused(changes, message):
    config = TrainConfig(mesh=MeshConfig(data=2, fsdp=2), updates_per_step=2, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        config.validate()


@given(processes=st.integers(1, 4), here=st.integers(1, 6), data=st.data())
def test_devices_for_others_are_the_last_ones_of_each_process(processes, here, data):
    each = data.draw(st.integers(0, here))
    made = [types.SimpleNamespace(process_index=i // here, id=i) for i in range(processes * here)]
    used = without_spare(data.draw(st.permutations(made)), each * processes)
    assert [device.id for device in used] == [i for i in range(processes * here) if i % here < here - each]
