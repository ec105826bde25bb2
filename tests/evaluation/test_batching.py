import hypothesis
import hypothesis.strategies as st

from nrt_jax.evaluation.batching import batches

keys = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@hypothesis.given(keys, st.integers(1, 12))
def test_every_row_is_in_one_batch_of_the_common_size_and_large_rows_come_first(keys, batch_size):
    parts = list(batches(keys, batch_size))
    assert {len(part) for part in parts} == {min(batch_size, len(keys))}
    order = [i for part in parts for i in dict.fromkeys(part)]
    assert sorted(order) == list(range(len(keys)))
    assert [keys[i] for i in order] == sorted(keys, reverse=True)
