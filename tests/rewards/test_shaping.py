"""Punishments against counting by hand."""

import collections

import hypothesis
import hypothesis.strategies as st
import numpy as np

from nrt_jax.rewards import ShapingConfig, punishment
from nrt_jax.rewards.shaping import repeats, soft_overlong

WIDTH = 24

rows = st.lists(st.lists(st.integers(0, 2), max_size=WIDTH), min_size=1, max_size=5)


def padded(rows):
    tokens = np.full((len(rows), WIDTH), 1, np.int32)  # Padding that would repeat, if it counted.
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.arange(WIDTH) < np.array([len(row) for row in rows])[:, None]


@hypothesis.given(rows, st.integers(1, 4), st.integers(2, 6))
def test_repeats_are_those_that_counting_finds(rows, size, count):
    found = repeats(*padded(rows), size, count)
    for row, is_found in zip(rows, np.asarray(found), strict=True):
        counts = collections.Counter(tuple(row[i : i + size]) for i in range(len(row) - size + 1))
        assert is_found == any(n >= count for n in counts.values())


@hypothesis.given(st.integers(1, 40), st.integers(0, 40), st.lists(st.integers(0, 60), min_size=1, max_size=9))
def test_soft_overlong_is_equation_13_of_dapo(longest, cache, lengths):
    cache = min(cache, longest)
    for length, found in zip(lengths, np.asarray(soft_overlong(np.array(lengths), longest, cache)), strict=True):
        if length <= longest - cache:
            expected = 0.0
        elif length <= longest:
            expected = ((longest - cache) - length) / cache
        else:
            expected = -1.0
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_punishments_add_up_and_none_is_the_default():
    tokens, mask = padded([[2] * 12, [0, 1, 2] * 2, []])
    config = ShapingConfig(overlong_max=10, overlong_cache=5, ngram_count=4, ngram_size=2)
    np.testing.assert_allclose(punishment(tokens, mask, config), [-2.0, -0.2, 0.0], rtol=1e-6)
