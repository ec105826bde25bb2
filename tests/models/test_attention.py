"""Attention over segments: against float64 numpy, in blocks and whole, and by the accelerators' kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nrt_jax.models import KVCache, attention, backends

P, G, R, D = 4, 2, 2, 8


def problem(seed, *, group_size, lengths, holes, at_end=False, num_prompts=P, head_dim=D, dtype=jnp.float32):
    """q, positions, segments and a weight of each output, for slots of which a share `holes` is empty.

    They are anywhere, or at the end of every segment.

    All segments but the last precede the queries, whose own keys are the last. The first is shared by the group.
    """
    rng = np.random.default_rng(seed)
    start = np.zeros((num_prompts, group_size), int)
    segments = []
    for i, length in enumerate(lengths):
        rows = 1 if i == 0 and len(lengths) > 1 else group_size
        filled = rng.random((num_prompts, rows, length)) >= holes
        filled = np.sort(filled, -1)[..., ::-1] if at_end else filled
        positions = np.where(filled, start[:, :rows, None] + np.cumsum(filled, -1) - 1, -1)
        start = start + filled.sum(-1)
        shape = (num_prompts, G, rows, length, head_dim)
        k, v = (jnp.asarray(rng.normal(size=shape), dtype) for _ in "kv")
        segments.append(KVCache(k=k, v=v, positions=jnp.asarray(positions, jnp.int32)))
    positions = segments[-1].positions
    q, weight = rng.normal(size=(2, num_prompts, group_size, lengths[-1], G * R, head_dim))
    return jnp.asarray(q, dtype), positions, segments, jnp.asarray(weight * (positions >= 0)[..., None, None], dtype)


def expected(q, positions, segments, window):
    """Row by row in float64, with one softmax over all that a query sees; zero for padding."""
    q, positions = np.float64(q), np.asarray(positions)
    result = np.zeros(q.shape)
    for p, k, t, h in np.ndindex(*q.shape[:4]):
        if positions[p, k, t] < 0:
            continue
        scores, values = [], []
        for s in segments:
            row = min(k, s.k.shape[2] - 1)
            slots = np.asarray(s.positions)[p, row]
            seen = (slots >= 0) & (slots <= positions[p, k, t]) & (positions[p, k, t] - slots < (window or np.inf))
            scores.append(np.float64(s.k[p, h // R, row])[seen] @ q[p, k, t, h] / np.sqrt(q.shape[-1]))
            values.append(np.float64(s.v[p, h // R, row])[seen])
        weights = np.exp(np.concatenate(scores) - max(map(np.max, filter(len, scores))))
        result[p, k, t, h] = weights @ np.concatenate(values) / weights.sum()
    return result


def plain(q, positions, segments, window):
    """The definition, which autodiff differentiates: all slots side by side, [P, K, H, T, S] scores and a softmax."""
    width = q.shape[1]

    def rows(x, axis):
        return jnp.repeat(x, width // x.shape[axis], axis)

    k, v = (jnp.concatenate([rows(getattr(s, n), 2) for s in segments], 3).repeat(R, 1) for n in "kv")
    slots = jnp.concatenate([rows(s.positions, 1) for s in segments], 2)
    distance = positions[..., None] - slots[:, :, None]
    seen = (slots[:, :, None] >= 0) & (distance >= 0) & (distance < (window or 10**6))
    scores = jnp.einsum("pktHd,pHksd->pkHts", q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(seen[:, :, None], scores, -1e30)
    return jnp.einsum("pkHts,pHksd->pktHd", jax.nn.softmax(scores, -1), v)


def gradients(attend, q, positions, segments, weight):
    def loss(q, segments):
        return jnp.sum((attend(q, positions, segments) * weight).astype(jnp.float32))

    return jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(q, segments)


def assert_equal_gradients(ours, theirs, tolerance):
    (d_q, d_segments), (expected_q, expected_segments) = ours, theirs
    pairs = [(d_q, expected_q)]
    for a, b in zip(d_segments, expected_segments, strict=True):
        pairs += [(a.k, b.k), (a.v, b.v)]
    for a, b in pairs:
        np.testing.assert_allclose(np.float32(a), np.float32(b), atol=tolerance * (1 + np.abs(np.float32(b)).max()))


CASES = {
    "seed": st.integers(0, 2**20),
    "group_size": st.sampled_from([1, 3]),
    "lengths": st.sampled_from([(6,), (7, 5), (4, 5, 6)]),
    "holes": st.sampled_from([0.0, 0.3, 0.9]),
    "window": st.sampled_from([None, 1, 4]),
}


@given(**CASES)
@example(seed=0, group_size=3, lengths=(4, 5, 6), holes=1.0, window=None)  # nothing but padding
def test_attention_is_the_softmax_over_what_a_query_sees(seed, group_size, lengths, holes, window):
    q, positions, segments, _ = problem(seed, group_size=group_size, lengths=lengths, holes=holes)
    ours = np.asarray(attention.attend(q, positions, segments, window))
    assert np.isfinite(ours).all()
    tokens = np.asarray(positions) >= 0
    np.testing.assert_allclose(ours[tokens], expected(q, positions, segments, window)[tokens], atol=2e-6)


@given(**CASES, block=st.sampled_from([1, 2, 4]))
def test_gradients_are_those_of_the_definition_for_any_block(seed, group_size, lengths, holes, window, block):
    q, positions, segments, weight = problem(seed, group_size=group_size, lengths=lengths, holes=holes)
    num_scores = group_size * lengths[-1] * sum(lengths) * G * R
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK_SCORES", block * num_scores)
        ours = gradients(functools.partial(attention.attend, window=window), q, positions, segments, weight)
    theirs = gradients(functools.partial(plain, window=window), q, positions, segments, weight)
    assert_equal_gradients(ours, theirs, 3e-6)


def test_scores_exist_for_one_block_at_a_time():
    """Sixteen prompts in sixteen blocks take less than a quarter of the room of sixteen in one."""
    q, positions, segments, weight = problem(0, group_size=4, lengths=(64, 64), holes=0.1, num_prompts=16)

    def room(block_scores):
        def loss(q, segments):
            return jnp.sum(attention.attend(q, positions, segments, None) * weight)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "BLOCK_SCORES", block_scores)
            gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
            return gradient.lower(q, segments).compile().memory_analysis().temp_size_in_bytes

    assert room(1) < room(2**30) / 4


@pytest.mark.parametrize(
    ("backend", "lengths"),
    [("splash", (130,)), ("splash", (5, 130)), ("splash", (9, 120, 128)), ("cudnn", (130,)), ("cudnn", (150, 130))],
)
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_kernels_agree_with_plain_attention(backend, lengths, holes):
    """Splash by Pallas' interpreter; cuDNN's call with XLA in its place: layout, padding and mask are the same."""
    at_end = backend == "cudnn"
    q, positions, segments, weight = problem(
        1, group_size=2, lengths=lengths, holes=holes, at_end=at_end, num_prompts=1
    )
    if backend == "splash":
        kernel = functools.partial(backends.splash, interpret=True)
    else:

        def kernel(q, positions, segments):
            return backends.cudnn(q, segments, implementation="xla")

    reference = functools.partial(plain, window=None)
    tokens = np.asarray(positions) >= 0
    ours, theirs = (np.asarray(f(q, positions, segments))[tokens] for f in (kernel, reference))
    np.testing.assert_allclose(ours, theirs, atol=3e-6)
    ours, theirs = (gradients(f, q, positions, segments, weight) for f in (kernel, reference))
    assert_equal_gradients(ours, theirs, 3e-6)


def test_rows_of_nothing_but_padding_leave_splash_gradients_finite():
    q, positions, segments, _ = problem(1, group_size=2, lengths=(5, 130), holes=1.0, num_prompts=1)
    weight = jnp.zeros_like(q)
    kernel = functools.partial(backends.splash, interpret=True)
    for leaf in jax.tree.leaves(gradients(kernel, q, positions, segments, weight)):
        assert leaf.dtype == jax.dtypes.float0 or not np.asarray(leaf).any()
