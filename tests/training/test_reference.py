"""The reference policy: what it scores, how it follows, what a settled step is, that a resumed run is the same run."""

import dataclasses
import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from launch import cli
from nrt_jax.errors import UserError
from nrt_jax.models import LoRAConfig, lora
from nrt_jax.objectives import AdvantageConfig, NRTLossConfig, group_advantage
from nrt_jax.rewards import ShapingConfig, aggregate
from nrt_jax.training import loop, reference
from nrt_jax.training.checkpoint import Checkpointer
from nrt_jax.training.collect import collect
from nrt_jax.training.config import ReferenceConfig, RewardConfig, TrainConfig
from nrt_jax.training.learner import completion_log_probs, without_trace
from nrt_jax.training.optimizer import make_optimizer
from nrt_jax.training.setup import prepare
from nrt_jax.training.state import abstract_state, create_state
from tests.fixtures_model import random_batch, sampling, tiny_model
from tests.fixtures_run import records, write_config

QUESTIONS = random_batch(2)
RECIPES = sorted(
    path.relative_to(cli.CONFIGS_FOLDER).with_suffix("").as_posix()
    for folder in ("peers", "objectives")
    for path in (cli.CONFIGS_FOLDER / folder).glob("*.py")
)
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


@pytest.fixture(scope="module")
def other():
    """Another policy than the one that samples."""
    model, params = tiny_model()
    return reference.Policy(model, jax.tree.map(lambda x: 0.8 * x, params), None)


def settled(policy=None, reward_std=None, **configs):
    """A step with a reference: the same rollout every time."""
    model, params = tiny_model()
    defaults = {
        "reward_config": RewardConfig(),
        "reference_config": ReferenceConfig(),
        "advantage_config": AdvantageConfig(),
        "loss_config": NRTLossConfig(),
        "max_length": 1000,
    }
    how = {"reference": policy, "reward_std": reward_std, "beside": HERE} | defaults | configs
    return collect(model, params, QUESTIONS, jax.random.key(1), sampling(chunk_size=5), **how)


@pytest.fixture(scope="module")
def collected():
    return settled()


@pytest.fixture(scope="module")
def expected(collected, other):
    """log pi_ref of every token by the learner's own forward."""
    return np.asarray(jax.jit(completion_log_probs, static_argnums=0)(other.model, other.params, collected[0])[0])


def covered(batch):
    return np.asarray(batch.masks.trace | batch.masks.reference)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_completions_are_scored_as_the_learner_scores_them_in_any_number_of_parts(
    collected, other, expected, num_parts
):
    where = covered(collected[0])
    found = reference.score_completions(other, collected[0], 1.0, num_parts)
    np.testing.assert_allclose(np.asarray(found)[where], expected[where], atol=1e-5)


def test_the_empty_trace_is_scored_as_the_rollouts_scorer_does(collected):
    model, params = tiny_model()
    found = reference.score_completions(
        reference.Policy(model, params, None),
        without_trace(QUESTIONS),
        1.0,
    )
    mask = QUESTIONS.reference.mask
    np.testing.assert_allclose(
        np.asarray(found)[:, 0, 2:][mask], np.asarray(collected[1].base_log_probs)[mask], atol=1e-4
    )


def test_kl_in_the_loss_keeps_the_references_log_probs_and_changes_nothing_else(collected, other, expected):
    config = ReferenceConfig("initial")
    batch, outcome = settled(other, reference_config=config, loss_config=NRTLossConfig(kl_weight=0.1))
    where = covered(batch)
    np.testing.assert_allclose(np.asarray(batch.reference_log_probs)[where], expected[where], atol=1e-5)
    chex.assert_trees_all_close(batch.replace(reference_log_probs=None), collected[0], atol=1e-6)
    chex.assert_trees_all_close(outcome, collected[1], atol=1e-6)


def test_kl_in_the_reward_is_the_sum_over_the_trace_before_the_advantage(collected, other, expected):
    loss = NRTLossConfig(kl_weight=0.5, kl_in="reward", kl_estimator="k1")
    how = {"reference_config": ReferenceConfig("initial"), "advantage_config": AdvantageConfig(clip="none")}
    batch, outcome = settled(other, loss_config=loss, **how)
    plain, where = collected[0], np.asarray(collected[0].masks.trace)
    kl = np.sum(np.where(where, np.asarray(plain.old_log_probs) - expected, 0.0), -1)
    reward = np.asarray(collected[1].reward) - 0.5 * kl
    np.testing.assert_allclose(outcome.reward, reward, atol=1e-4)
    np.testing.assert_allclose(batch.advantage, group_advantage(outcome.reward), atol=1e-6)
    assert batch.reference_log_probs is None


def test_the_reference_scores_answers_or_the_empty_trace_in_place_of_the_policy(collected, other, expected):
    """RLPR's reward against the initial policy's, and a reward of the answer under a proxy; punishments stay."""
    batch, outcome = collected
    mask = QUESTIONS.reference.mask
    rewards = RewardConfig(mode="arithmetic_mean", shaping=ShapingConfig(overlong_max=2))
    punished = -1.0 * (np.asarray(outcome.num_sampled) > 2)
    assert punished.any() and not punished.all()
    base = reference.score_completions(other, without_trace(QUESTIONS), 1.0)[:, 0, 2:]
    _, found = settled(
        other,
        reward_config=rewards,
        reference_config=ReferenceConfig("initial", scores="empty_trace"),
    )
    wide = np.broadcast_to(mask[:, None], outcome.log_probs.shape)
    by_policy = np.asarray(aggregate("arithmetic_mean", outcome.log_probs, wide).trace)
    by_other = np.asarray(aggregate("arithmetic_mean", base, mask).trace)
    np.testing.assert_allclose(found.reward, by_policy + punished, atol=1e-5)
    np.testing.assert_allclose(found.baseline, by_other, atol=1e-6)
    clipped = np.maximum(by_policy - by_other[:, None], 0) + punished
    np.testing.assert_allclose(found.advantage, group_advantage(jnp.asarray(clipped)), atol=1e-4)

    rewards = RewardConfig(mode="arithmetic_mean")
    _, found = settled(other, reward_config=rewards, reference_config=ReferenceConfig("ema", scores="answers"))
    for p, k in np.ndindex(*outcome.reward.shape):
        probs = np.exp(expected[p, k][np.asarray(batch.masks.reference)[p, k]])
        np.testing.assert_allclose(found.reward[p, k], probs.mean(), atol=1e-4)
    np.testing.assert_allclose(found.baseline, by_other, atol=1e-6)


def test_advantages_over_the_batch_and_the_filter_see_all_prompts(collected):
    _, outcome = settled(advantage_config=AdvantageConfig(clip="none", scale="batch"))
    np.testing.assert_allclose(outcome.advantage, group_advantage(collected[1].reward, scale="batch"), atol=1e-6)
    std = np.asarray(collected[1].reward).std(-1, ddof=1)
    limit = np.sort(std)[1] + 1e-6  # Two of the three prompts are below it.
    config = AdvantageConfig(clip="none", min_std=1.0)
    _, outcome = settled(None, jnp.float32(limit), advantage_config=config)
    np.testing.assert_array_equal(np.asarray(outcome.advantage).any(-1), std > limit)
    np.testing.assert_allclose(outcome.reward_std, 0.99 * limit + 0.01 * std.mean(), rtol=1e-5)


def test_the_state_of_a_run_without_reference_has_no_more_arrays():
    config = TrainConfig()
    assert loop.state_parts(config) == {"with_reference": False, "with_std": False}
    _, params = tiny_model()
    state = create_state(params, optax.sgd(1.0))
    assert len(jax.tree.leaves(state)) == 1 + len(jax.tree.leaves(params))


def test_the_average_follows_at_its_own_pace_and_is_its_own_copy():
    _, params = tiny_model()
    state = create_state(jax.tree.map(jnp.copy, params), optax.sgd(1.0), with_reference=True)
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.params)}
    assert not pointers & {x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.reference)}
    moved = state.replace(params=jax.tree.map(lambda x: x + 1.0, params))
    config = ReferenceConfig("ema", decay=0.9, every=3)
    for step in (1, 2):
        assert reference.follow(config, moved, step).reference is moved.reference
    chex.assert_trees_all_close(
        reference.follow(config, moved, 3).reference,
        jax.tree.map(lambda x: 0.9 * x + 0.1 * (x + 1.0), params),
        atol=1e-6,
    )


def test_the_initial_policy_outlives_the_donated_params_and_is_the_base_with_adapters_off(collected):
    model, params = tiny_model()
    trained = jax.tree.map(jnp.copy, params)
    kept = reference.initial_policy(model, trained, None)
    for leaf in jax.tree.leaves(trained):
        leaf.delete()
    chex.assert_trees_all_equal(kept.params, params)
    with_lora = dataclasses.replace(model, lora=LoRAConfig(rank=2))
    adapters, frozen = lora.split(with_lora, params, [3, 4], jax.random.key(0))
    base = reference.initial_policy(with_lora, adapters, frozen)
    assert base.params is frozen.params
    with_adapters = reference.Policy(with_lora, adapters, frozen)  # As a moving average of adapters is asked.
    scores = [reference.score_completions(policy, collected[0], 1.0) for policy in (with_adapters, base)]
    where = covered(collected[0])
    np.testing.assert_allclose(*(np.asarray(x)[where] for x in scores), atol=1e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_named_in_the_docs(name):
    config = cli.load_config(name, TrainConfig)
    config.validate()
    docs = (cli.CONFIGS_FOLDER.parent / "docs" / "methods.md").read_text()
    assert f"`{name}`" in docs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    config = write_config(tmp_path_factory.mktemp("inputs"))
    return dataclasses.replace(config, steps=2, evaluation=dataclasses.replace(config.evaluation, every=0))


def final_state(config, folder):
    optimizer = make_optimizer(config.optimizer, config.steps * config.updates_per_step)
    with Checkpointer(folder / "checkpoints") as checkpoints:
        params = prepare(config).params
        return checkpoints.restore(abstract_state(params, optimizer, **loop.state_parts(config)))[0]


@pytest.mark.parametrize("name", ["jepo", "latro"])
def test_methods_take_steps(tiny, tmp_path, name):
    config = importlib.import_module(f"configs.peers.{name}").change(tiny)
    config = dataclasses.replace(config, rollout=tiny.rollout)
    loop.train(config, prepare(config), tmp_path, lambda line: None)
    found = records(tmp_path)
    assert [record["step"] for record in found] == [1, 2]
    assert all(np.isfinite(value) for record in found for value in record.values())
    assert ("kl_loss" in found[0]) == (name == "jepo")
    if name == "jepo":
        assert abs(found[0]["kl_loss"]) < 1e-6 < found[1]["kl_loss"]  # The first update starts at the reference.


def test_a_resumed_run_with_a_proxy_and_a_filter_is_the_same_run(tiny, tmp_path):
    """NOVER's proxy, synchronised at every second step, and RLPR's filter: both are state."""
    config = importlib.import_module("configs.peers.nover").change(tiny)
    config = dataclasses.replace(
        config,
        steps=3,
        advantage=dataclasses.replace(config.advantage, min_std=0.7),
        reference=dataclasses.replace(config.reference, every=2),
    )
    loop.train(config, prepare(config), tmp_path / "whole", lambda line: None)
    calls = []

    def interrupted(*args, step=loop._step):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return step(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_step", interrupted)
        loop.train(config, prepare(config), tmp_path / "cut", lambda line: None)
    loop.train(config, prepare(config), tmp_path / "cut", lambda line: None)
    whole, cut = (final_state(config, tmp_path / name) for name in ("whole", "cut"))
    chex.assert_trees_all_equal(cut, whole)
    assert np.isfinite(whole.reward_std) and records(tmp_path / "cut") == records(tmp_path / "whole")
    initial = prepare(config).params
    distance = [
        jax.tree.map(lambda x, y: np.abs(x - y).max(), tree, initial) for tree in (whole.reference, whole.params)
    ]
    for slow, fast in zip(*map(jax.tree.leaves, distance), strict=True):
        assert 0 < slow < fast  # One synchronisation, a tenth of the way.


REFERENCE = ReferenceConfig("initial")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": NRTLossConfig(kl_weight=0.1)}, r"reference\.kind: 'none'.*'initial' or 'ema'"),
        ({"reference": REFERENCE}, r"reference\.kind: 'initial'.*kl-weight"),
        ({"reference": ReferenceConfig(scores="answers")}, r"reference\.kind: 'none'"),
        (
            {"reference": REFERENCE, "loss": NRTLossConfig(kl_weight=0.1), "objective": "sft"},
            r"reference\.kind: 'initial'.*'none' with --objective sft",
        ),
        (
            {"reference": ReferenceConfig("ema", scores="answers"), "reward": RewardConfig(mode="random")},
            r"reference\.scores: 'answers'",
        ),
        ({"reference": ReferenceConfig("ema", decay=1.0)}, r"reference\.decay: 1\.0"),
        ({"reference": ReferenceConfig("ema", every=0)}, r"reference\.every: 0"),
        ({"advantage": AdvantageConfig(scale="jepo")}, r"advantage\.scale: 'jepo'.*--reward\.mode jepo"),
        (
            {"reward": RewardConfig(mode="dro", shaping=ShapingConfig(require_delimiter=True))},
            r"reward\.shaping\.require_delimiter: True.*never below 0",
        ),
        (
            {"reward": RewardConfig(mode="prob", shaping=ShapingConfig(overlong_max=4, overlong_cache=5))},
            r"overlong_cache: 5.*at most overlong_max, 4",
        ),
        ({"loss": NRTLossConfig(kl_weight=-0.1)}, r"loss\.kl_weight: -0\.1"),
        ({"advantage": AdvantageConfig(min_std=-1.0)}, r"advantage\.min_std: -1\.0"),
    ],
)
def test_parts_of_methods_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TrainConfig(), **changes).validate()
