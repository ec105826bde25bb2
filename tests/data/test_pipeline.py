"""The order of the data: whole epochs, and a pure function of seed and step."""

from hypothesis import given
from hypothesis import strategies as st

from nrt_jax.data.pipeline import rows_of_step, shuffled

sizes = st.integers(1, 30)
seeds = st.integers(0, 2**31 - 1)


@given(num_rows=sizes, batch_size=sizes, seed=seeds)
def test_steps_partition_every_epoch_without_gap_or_repeat(num_rows, batch_size, seed):
    rows = shuffled(range(num_rows), seed)
    steps = -(-3 * num_rows // batch_size)
    taken = [row for step in range(steps) for row in rows_of_step(rows, step, batch_size)]
    for epoch in range(3):
        assert sorted(taken[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


@given(num_rows=sizes, batch_size=sizes, seed=seeds, step=st.integers(0, 1000))
def test_step_is_a_pure_function_of_seed_and_step(num_rows, batch_size, seed, step):
    rows = shuffled(range(num_rows), seed)
    first = rows_of_step(rows, step, batch_size)
    rows_of_step(rows, step + 1, batch_size)  # what was read before does not matter
    assert rows_of_step(rows, step, batch_size) == first
    assert rows_of_step(shuffled(range(num_rows), seed), step, batch_size) == first  # nor does a new process


def test_epochs_and_seeds_differ_in_order():
    orders = [rows_of_step(shuffled(range(50), seed), epoch, 50) for seed in range(2) for epoch in range(2)]
    assert len({tuple(order) for order in orders}) == 4
