"""The order of the data: whole epochs, a pure function of seed and step, whoever reads it and wherever it stops."""

import collections
import itertools

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nrt_jax.data.pipeline import Batches, mixture, shuffled
from nrt_jax.errors import UserError

sizes = st.integers(1, 30)
seeds = st.integers(0, 2**31 - 1)


def take(batches, num: int) -> list[list[int]]:
    return [next(batches) for _ in range(num)]


def joined(lists) -> list:
    return list(itertools.chain.from_iterable(lists))


def numbered(batch: list[int]) -> list[int]:
    """A transform that worker processes can import."""
    return [row + 1000 for row in batch]


@given(num_rows=sizes, batch_size=sizes, seed=seeds)
def test_steps_partition_every_epoch_without_gap_or_repeat(num_rows, batch_size, seed):
    batches = Batches(shuffled(range(num_rows), seed), batch_size)
    taken = joined(take(batches, -(-3 * num_rows // batch_size)))
    for epoch in range(3):
        assert sorted(taken[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


@given(num_rows=sizes, batch_size=sizes, seed=seeds, step=st.integers(0, 1000))
def test_a_restored_iterator_goes_on_as_if_it_had_never_stopped(num_rows, batch_size, seed, step):
    rows = shuffled(range(num_rows), seed)
    first = Batches(rows, batch_size)
    first.set_state({"step": step, "identity": None})
    state = first.get_state()
    expected = take(first, 4)
    again = Batches(shuffled(range(num_rows), seed), batch_size)
    take(again, 3)  # What was read before does not matter.
    again.set_state(state)
    assert take(again, 4) == expected
    assert expected == [[rows[i] for i in range(s * batch_size, (s + 1) * batch_size)] for s in range(step, step + 4)]


def test_worker_processes_give_the_same_stream_from_a_later_step_on():
    step = 17
    rows = mixture([range(13), range(100, 107)], [2.0, 1.0], seed=3)
    alone = Batches(rows, 4, transform=numbered)
    expected = take(alone, step + 6)[step:]
    with Batches(rows, 4, transform=numbered, workers=2) as ahead:
        take(ahead, step)
        state = ahead.get_state()
        assert take(ahead, 6) == expected
    for workers in (0, 2):
        with Batches(rows, 4, transform=numbered, workers=workers) as restored:
            take(restored, 2)
            restored.set_state(state)
            assert restored.get_state() == state
            assert take(restored, 6) == expected


@given(num_rows=sizes, each=st.integers(1, 5), shards=st.integers(1, 4), seed=seeds)
def test_processes_together_take_the_batch_that_one_alone_takes(num_rows, each, shards, seed):
    rows = shuffled(range(num_rows), seed)
    alone = Batches(rows, each * shards)
    several = [Batches(rows, each * shards, shard_index=p, num_shards=shards) for p in range(shards)]
    for _ in range(4):
        parts = [next(batches) for batches in several]
        assert [len(part) for part in parts] == [each] * shards
        assert joined(parts) == next(alone)


def test_batch_that_processes_cannot_share_equally_is_refused():
    with pytest.raises(
        UserError, match=r"rollout\.prompts: 6 cannot be divided among 4 processes; expected a multiple"
    ):
        Batches(shuffled(range(9), 0), 6, num_shards=4)


def test_state_of_other_rows_is_refused():
    with pytest.raises(UserError, match=r"rows are \[9\], but were \[8\] when the checkpoint was written"):
        Batches(shuffled(range(9), 0), 3, identity=[9]).set_state({"step": 1, "identity": [8]})


def test_epochs_and_seeds_differ_in_order():
    orders = [tuple(order) for seed in range(2) for order in take(Batches(shuffled(range(50), seed), 50), 2)]
    assert len(set(orders)) == 4


@given(num_rows=sizes, seed=seeds, weights=st.sampled_from([(), (3.0,)]))
def test_a_mixture_of_one_source_is_that_source(num_rows, seed, weights):
    mixed, own = mixture([range(num_rows)], weights, seed), shuffled(range(num_rows), seed)
    assert [mixed[i] for i in range(60)] == [own[i] for i in range(60)]


@given(sizes=st.lists(sizes, min_size=2, max_size=4), seed=seeds)
def test_without_weights_all_rows_of_all_sources_come_once_an_epoch(sizes, seed):
    parts = [[(part, row) for row in range(size)] for part, size in enumerate(sizes)]
    mixed, total = mixture(parts, (), seed), sum(sizes)
    for epoch in range(2):
        assert sorted(mixed[i] for i in range(epoch * total, (epoch + 1) * total)) == joined(parts)


@settings(max_examples=8)
@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=4), seed=seeds)
def test_weights_are_the_shares_and_each_source_has_whole_epochs(weights, seed):
    parts = [[(part, row) for row in range(7 + part)] for part in range(len(weights))]
    mixed = mixture(parts, [float(weight) for weight in weights], seed)
    drawn = [mixed[i] for i in range(400)]
    for part, weight in enumerate(weights):
        mine = [row for row in drawn if row[0] == part]
        assert abs(len(mine) - 400 * weight / sum(weights)) < 8  # Grain rounds weights to a hundredth
        epochs = [mine[i : i + len(parts[part])] for i in range(0, len(mine) - len(parts[part]) + 1, len(parts[part]))]
        assert all(collections.Counter(epoch) == collections.Counter(parts[part]) for epoch in epochs)


def test_rows_are_read_when_they_are_used_and_not_before():
    read = []

    class Rows:
        def __len__(self):
            return 1000

        def __getitem__(self, index):
            read.append(int(index))
            return int(index)

    batches = Batches(shuffled(Rows(), 0), 4)
    assert not read
    assert next(batches) == read and isinstance(shuffled(Rows(), 0), grain.MapDataset)
