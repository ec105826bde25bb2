"""Costs that a program's jaxpr gives are those worked out by hand, loops counted as often as they run."""

import jax
import jax.numpy as jnp
import pytest

from nrt_jax.training.cost import collectives, count

M, N, K = 8, 16, 32
PRODUCT = 2 * M * N * K
X, W = jnp.zeros((M, K)), jnp.zeros((K, N))


def cost(function, *args, while_trips=1):
    return count(jax.jit(function).trace(*args).jaxpr.jaxpr, while_trips)


def test_a_product_costs_two_operations_for_each_pair_and_moves_three_matrices():
    found = cost(lambda x, w: x @ w, X, W)
    assert found.flops == PRODUCT and found.bytes == 4 * (M * K + K * N + M * N)


def test_a_batched_product_costs_one_for_each_of_the_batch():
    assert cost(lambda x, w: jnp.einsum("bmk,bkn->bmn", x, w), X[None].repeat(5, 0), W[None].repeat(5, 0)).flops == (
        5 * PRODUCT
    )


@pytest.mark.parametrize("length", [1, 7])
def test_a_scan_costs_its_body_for_each_step(length):
    def run(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert cost(run, jnp.zeros((M, K)), jnp.zeros((length, K, K))).flops == length * 2 * M * K * K


def test_a_loop_that_depends_on_data_costs_as_many_steps_as_are_said():
    def run(x, w):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ w, x)

    assert cost(run, X, jnp.zeros((K, K)), while_trips=11).flops == 11 * 2 * M * K * K


def test_of_two_branches_the_dearer_one_counts():
    def run(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert cost(run, X, jnp.zeros((K, K))).flops == 2 * 2 * M * K * K


def test_collectives_are_counted_by_kind():
    text = "a = f32[2] all-reduce(b)\nc = all-gather-start(d)\ne = all-gather-done(c)\nf = fusion(all-reduce.1)"
    assert collectives(text) == {"all-reduce": 1, "all-gather": 1}
