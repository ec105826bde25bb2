"""Each recipe's advantage and loss against its paper's formula, written out in float64: values and gradients."""

import dataclasses
import functools
import importlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import cli
from nrt_jax.objectives import (
    LossMasks,
    NRTLossConfig,
    denominators,
    drop_low_std,
    group_advantage,
    nrt_loss,
    token_signal,
)
from nrt_jax.rewards import aggregate_group, punishment
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.step import mix

P, K, T = 2, 3, 6
LONGEST = 4


@dataclasses.dataclass
class Case:
    """What a paper's formula is a function of: reward [P, K], log-probabilities and lengths of o_i, all float64.

    Some papers want more of a trace: `base` [P] is the reward without reasoning, `formatted` [P, K] 1 or 0, `average`
    the moving average of the rewards' standard deviations. `frozen` are the log-probabilities that a stop-gradient
    sees: the same numbers, which differentiation leaves alone.
    """

    reward: np.ndarray
    log_probs: np.ndarray
    frozen: np.ndarray
    old: np.ndarray
    reference: np.ndarray
    length: np.ndarray
    answer_length: np.ndarray
    base: np.ndarray
    formatted: np.ndarray
    average: float

    def tokens(self):
        """All (p, k, t) of sampled tokens: index 0 is the prompt's, then come the trace and the answer."""
        return [(p, k, 1 + t) for p in range(P) for k in range(K) for t in range(self.length[p, k])]

    def answer(self, p, k):
        return slice(1 + self.length[p, k], 1 + self.length[p, k] + self.answer_length[p])


def std_advantage(r):
    return (r - r.mean(-1, keepdims=True)) / r.std(-1, ddof=1, keepdims=True)


def ratio(c, i):
    return np.exp(c.log_probs[i] - c.old[i])


def clipped_surrogate(c, i, a, low, high):
    return min(ratio(c, i) * a, np.clip(ratio(c, i), low, high) * a)


def per_token(c, advantage, term):
    """{(p, k): [term of each token of o_pk]}."""
    out = {}
    for p, k, t in c.tokens():
        out.setdefault((p, k), []).append(term(c, (p, k, t), advantage[p, k]))
    return out


def whole_trace_kl(c):
    kl = np.zeros((P, K))
    for i in c.tokens():
        kl[i[:2]] += c.old[i] - c.reference[i]
    return kl


def leave_one_out(r):
    return np.array([[r[p, k] - np.delete(r[p], k).mean() for k in range(K)] for p in range(P)])


def grpo(c):
    """(1/G) sum_i (1/|o_i|) sum_t {min(..) - 0.04 (pi_ref / pi - log(pi_ref / pi) - 1)}."""

    def term(c, i, a):
        d = c.reference[i] - c.log_probs[i]
        return clipped_surrogate(c, i, a, 0.8, 1.2) - 0.04 * (np.exp(d) - d - 1)

    return -np.mean([np.mean(ts) for ts in per_token(c, std_advantage(c.reward), term).values()])


def dr_grpo(c):
    advantage = c.reward - c.reward.mean(-1, keepdims=True)
    terms = per_token(c, advantage, lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.2))
    return -np.mean([np.sum(ts) / LONGEST for ts in terms.values()])


def dapo(c):
    terms = per_token(c, std_advantage(c.reward), lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.28))
    return -np.mean(np.concatenate(list(terms.values())))


def cispo(c):
    def term(c, i, a):
        return min(np.exp(c.frozen[i] - c.old[i]), 1.28) * a * c.log_probs[i]

    return -np.mean(np.concatenate(list(per_token(c, std_advantage(c.reward), term).values())))


def rloo(c):
    advantage = leave_one_out(c.reward - 0.05 * whole_trace_kl(c))
    terms = per_token(c, advantage, lambda c, i, a: a * c.log_probs[i])
    return -np.mean([np.sum(ts) for ts in terms.values()])


def reinforce_pp(c):
    r = c.reward - 1e-3 * whole_trace_kl(c)
    advantage = (r - r.mean()) / r.std(ddof=1)
    terms = per_token(c, advantage, lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.2))
    return -np.mean(np.concatenate(list(terms.values())))


def verifree(c):
    """(R_i - mean of the others) log pi(z_i) + R_i log pi(y* | z_i); R_i, the constant, is c.reward."""
    terms = per_token(c, leave_one_out(c.reward), lambda c, i, a: a * c.log_probs[i])
    loss = 0.0
    for (p, k), ts in terms.items():
        loss -= np.sum(ts) + c.reward[p, k] * np.sum(c.log_probs[p, k, c.answer(p, k)])
    return loss / (P * K)


def rlpr(c):
    """0.9 max(0, R - R_prompt-only) + 0.1 format; std below 0.9 of its average is dropped; 0.8 to 1.27."""
    r = 0.9 * np.maximum(0.0, c.reward - c.base[:, None]) + 0.1 * c.formatted
    std = r.std(-1, ddof=1, keepdims=True)
    kept = (std > 1e-6) & (std >= 0.9 * c.average)
    advantage = np.where(kept, (r - r.mean(-1, keepdims=True)) / np.where(kept, std, 1.0), 0.0)
    terms = per_token(c, advantage, lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.27))
    return -np.mean(np.concatenate(list(terms.values())))


def k3(c, i):
    d = c.reference[i] - c.log_probs[i]
    return np.exp(d) - d - 1


def jepo(c):
    """sum_i A_i log pi(z_i) + log(1/n sum_j p_j) by its gradient, less 1e-3 KL; c.reward is log p_j, c.frozen's."""
    p = np.exp(c.reward)
    bound = np.log(p.mean(-1, keepdims=True))
    gain = bound - np.log([[np.delete(p[i], k).mean() for k in range(K)] for i in range(P)])
    advantage = np.clip(gain / gain.std(-1, ddof=1, keepdims=True), -1.0, 1.0)
    terms = per_token(c, advantage, lambda c, i, a: a * c.log_probs[i] - 1e-3 * k3(c, i))
    loss = 0.0
    for (i, k), ts in terms.items():
        loss -= np.sum(ts) + p[i, k] / p[i].sum() * np.sum(c.log_probs[i, k, c.answer(i, k)])
    return loss / (P * K)


def latro(c):
    """RLOO on R - 0.05 (log pi(z) - log pi_ref(z)), and log p(y* | x, z)."""
    advantage = leave_one_out(c.reward - 0.05 * whole_trace_kl(c))
    loss = 0.0
    for (p, k), ts in per_token(c, advantage, lambda c, i, a: a * c.log_probs[i]).items():
        loss -= np.sum(ts) + np.sum(c.log_probs[p, k, c.answer(p, k)])
    return loss / (P * K)


def nover(c):
    advantage = c.reward - c.reward.mean(-1, keepdims=True)
    terms = per_token(c, advantage, lambda c, i, a: clipped_surrogate(c, i, a, 0.9, 1.2) - 0.1 * k3(c, i))
    return -np.mean([np.mean(ts) for ts in terms.values()])


def dro(c):
    terms = per_token(c, std_advantage(c.reward), lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.2))
    return -np.mean([np.mean(ts) for ts in terms.values()])


def rlp(c):
    """A = G / (G - 1) (r - mean), r = log p(y* | trace) - log p_EMA(y* | none)."""
    r = c.reward - c.base[:, None]
    advantage = K / (K - 1) * (r - r.mean(-1, keepdims=True))
    terms = per_token(c, advantage, lambda c, i, a: clipped_surrogate(c, i, a, 0.8, 1.2))
    return -np.mean([np.mean(ts) for ts in terms.values()])


FORMULAS = {
    "objectives.grpo": grpo,
    "objectives.dr_grpo": dr_grpo,
    "objectives.dapo": dapo,
    "objectives.cispo": cispo,
    "objectives.rloo": rloo,
    "objectives.reinforce_pp": reinforce_pp,
    "peers.verifree": verifree,
}
PEERS = {
    "peers.rlpr": rlpr,
    "peers.jepo": jepo,
    "peers.latro": latro,
    "peers.nover": nover,
    "peers.dro": dro,
    "peers.rlp": rlp,
}


@functools.cache
def recipe(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    return module.change(
        dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, max_trace_length=LONGEST))
    ).resolve()


floats = st.floats(-1.0, 1.0, width=32)
cases = st.builds(
    Case,
    # Distinct in a group, so that a standard deviation is one of rewards and not of their rounding.
    reward=hnp.arrays(np.float64, (P, K), elements=st.integers(-8, 8).map(lambda n: n / 4), unique=True),
    log_probs=hnp.arrays(np.float64, (P, K, T), elements=floats).map(lambda x: x - 1.5),
    frozen=st.none(),
    old=hnp.arrays(np.float64, (P, K, T), elements=floats).map(lambda x: x / 2),
    reference=hnp.arrays(np.float64, (P, K, T), elements=floats).map(lambda x: x - 1.5),
    length=hnp.arrays(np.int64, (P, K), elements=st.integers(1, LONGEST - 1)),
    answer_length=hnp.arrays(np.int64, (P,), elements=st.integers(1, 2)),
    base=hnp.arrays(np.float64, (P,), elements=st.integers(-8, 8).map(lambda n: n / 4)),
    formatted=hnp.arrays(np.float64, (P, K), elements=st.integers(0, 1)),
    average=st.floats(0.25, 2.0, width=32),
)


def masks_of(c):
    index = np.arange(T)
    in_trace = (index >= 1) & (index <= c.length[..., None])
    answer_end = c.length[..., None] + c.answer_length[:, None, None]
    return LossMasks(
        trace=in_trace,
        delimiter=np.zeros_like(in_trace),
        reference=(index > c.length[..., None]) & (index <= answer_end),
    )


@functools.partial(jax.jit, static_argnames=("name", "given_denominators"))
def ours(log_probs, reward, old, reference, base, formatted, average, masks, *, name, given_denominators):
    config = recipe(name)
    derived = reward[..., None]  # VeriFree's, whose reward is p itself.
    if config.reward.mode == "jepo":
        whole = jnp.ones((P, 1), bool), jnp.ones((P, K)), jnp.ones((P, K), bool)
        derived = aggregate_group("jepo", derived, base[:, None], *whole)[0].token
    rewards = {"intrinsic": reward} | ({"format": formatted} if config.reward.format else {})
    reward = mix(rewards, config.reward, base, clip=config.advantage.clip)
    if config.loss.kl_weight > 0 and config.loss.kl_in == "reward":
        reward = reward - config.loss.kl_weight * jnp.sum(old - reference, -1, where=masks.trace)
    advantage = group_advantage(reward, scale=config.advantage.scale)
    if config.advantage.min_std:
        limits = {"min_std": config.advantage.min_std, "decay": config.advantage.std_decay}
        advantage = drop_low_std(advantage, reward, average, **limits)[0]
    signal = token_signal(config.loss.token_signal, jnp.broadcast_to(derived, masks.trace.shape), masks.reference)
    divide_by = denominators(masks, config.loss) if given_denominators else None

    def loss(log_probs):
        return nrt_loss(log_probs, old, advantage, signal, masks, config.loss, divide_by, reference)[0]

    return jax.value_and_grad(loss)(log_probs)


def numerical_gradient(formula, c, epsilon=1e-6):
    gradient = np.zeros((P, K, T))
    for i in np.ndindex(P, K, T):
        values = []
        for sign in (1, -1):
            moved = c.log_probs.copy()
            moved[i] += sign * epsilon
            values.append(formula(dataclasses.replace(c, log_probs=moved, frozen=c.log_probs)))
        gradient[i] = (values[0] - values[1]) / (2 * epsilon)
    return gradient


@pytest.mark.parametrize("name", FORMULAS)
@hypothesis.given(cases, st.booleans())
def test_loss_and_gradient_are_the_papers(name, c, given_denominators):
    assert_is_the_papers(FORMULAS[name], name, c, given_denominators)


@pytest.mark.parametrize("name", PEERS)
@hypothesis.settings(max_examples=20)
@hypothesis.given(cases)
def test_loss_and_gradient_of_a_peer_are_its_papers(name, c):
    assert_is_the_papers(PEERS[name], name, c, given_denominators=True)


def assert_is_the_papers(formula, name, c, given_denominators):
    c.frozen, c.old = c.log_probs, c.log_probs + c.old  # Ratios from 0.6 to 1.65, on both sides of the bounds.
    distance = np.abs(np.exp(c.log_probs - c.old)[..., None] - np.array([0.8, 0.9, 1.2, 1.27, 1.28]))
    hypothesis.assume((distance > 1e-4).all())  # At a bound the surrogate has a kink.
    numbers = (c.log_probs, c.reward, c.old, c.reference, c.base, c.formatted, c.average)
    arrays = [jnp.array(x, jnp.float32) for x in numbers]
    loss, gradient = ours(*arrays, masks_of(c), name=name, given_denominators=given_denominators)
    np.testing.assert_allclose(loss, formula(c), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, numerical_gradient(formula, c), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "longest"),
    [
        ((), 2048),
        (("--rollout.max-trace-length=8192",), 8192),
        (("--reward.intrinsic=0", "--reward.verifiable=1"), 2048 + 1 + 4096),
        (("--reward.intrinsic=0", "--reward.verifiable=1", "--rollout.max-answer-length=9"), 2048 + 1 + 9),
    ],
)
def test_numbers_of_a_recipe_that_follow_from_lengths_follow_the_flags(flags, longest):
    """Else DAPO punishes every trace above the recipe's own length by -1, and Dr.GRPO divides by that."""
    dapo, dr_grpo = (
        cli.parse(TrainConfig, "prog", "", args=[f"--config=objectives/{name}", *flags]) for name in ("dapo", "dr_grpo")
    )
    dapo.validate()
    dr_grpo.validate()
    shaping = dapo.resolve().reward.shaping
    assert (shaping.overlong_max, shaping.overlong_cache) == (longest, longest // 5)
    assert dr_grpo.resolve().loss.constant == longest
    lengths = jnp.array([longest - longest // 5, longest])
    punished = punishment(jnp.zeros((2, longest + 1)), jnp.arange(longest + 1) < lengths[:, None], shaping)
    np.testing.assert_allclose(punished, [0.0, -1.0])


def test_every_policy_loss_and_estimator_is_on_policy_what_it_says():
    """With pi = pi_old each policy loss has the gradient -A; with pi = pi_ref each estimate is 0."""
    log_probs = jnp.array([[[-1.0, -2.0]]])
    on, off = np.ones((1, 1, 2), bool), np.zeros((1, 1, 2), bool)
    masks = LossMasks(trace=on, delimiter=off, reference=off)
    for policy in ("nrt", "cispo", "ppo", "reinforce"):
        config = NRTLossConfig(policy=policy, normaliser="constant")
        gradient = jax.grad(lambda x, c=config: nrt_loss(x, log_probs, jnp.array([[0.7]]), x, masks, c)[0])(log_probs)
        np.testing.assert_allclose(gradient, np.full((1, 1, 2), -0.7), rtol=1e-6)
    for estimator, slope in (("k1", 1.0), ("k2", 0.0), ("k3", 0.0)):
        config = NRTLossConfig(kl_weight=1.0, kl_estimator=estimator, normaliser="constant", trace_weight=0.0)
        value, gradient = jax.value_and_grad(
            lambda x, c=config: nrt_loss(x, log_probs, jnp.zeros((1, 1)), x, masks, c, None, log_probs)[0]
        )(log_probs)
        assert value == 0
        np.testing.assert_allclose(gradient, np.full((1, 1, 2), slope))
