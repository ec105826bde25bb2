"""StepHint: some rows of a group start from the first steps of a right chain of thought (arXiv 2507.02841).

A chain z* is cut into m steps where the policy's wish to stop thinking rises and then drops. One group of

    2 rows each for the first 1, 2 and 3 steps of it,  5 rows without a hint,  the chain itself      (m = 4: 12 rows)

    hint  | . . . . . . . .                what the policy goes on to write
    z*_1  | . . . . . .
    z*_1 z*_2  | . . . . .
    z*_1 z*_2 z*_3  | . .
    z*_1 z*_2 z*_3 z*_4 </think>           all given, nothing sampled

lets one of them fit the policy's present ability. The paper's: the boundaries' rule, their least distance, the group,
hints in training only, no negative advantage on a right hint. Ours: boundaries are taken from the largest drop on,
each if it keeps its distance from those taken before and from both ends; a chain with too few of them has fewer levels,
and the rows of the missing ones go without a hint; statistics are those of the whole group; A becomes max(A, 0) on hint
tokens. It works with every reward: verifiable, as in the paper, and intrinsic, for answers that no rule can judge.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class HintConfig:
    """The composition of a group.

    Attributes:
        steps: m, steps that a chain is cut into; 0 for no hints.
        per_level: k_hint, rows for each of the m - 1 hint levels.
        plain: k_unhint, rows without a hint.
        min_distance: l, least tokens between two boundaries, and between a boundary and the chain's ends.
    """

    steps: int = 0
    per_level: int = 2
    plain: int = 5
    min_distance: int = 8

    @property
    def group_size(self) -> int:
        """K: hinted rows, rows without a hint, and the chain."""
        return self.per_level * (self.steps - 1) + self.plain + 1


def boundaries(delimiter_log_probs: np.ndarray, steps: int, min_distance: int) -> np.ndarray:
    """Where the steps of a chain end, but for the last: [m - 1] int, ascending; 0 for levels that it lacks.

    Candidates are the positions i with p(delimiter | z_1..z_i) > p(delimiter | z_1..z_i+1); a drop is the difference of
    these probabilities, not of their logarithms, whose largest ones lie among wishes of no weight (1e-5 to 1e-10).

    Args:
        delimiter_log_probs: [Z + 1], log p(delimiter | x, z_1..z_i) at index i, of a chain of Z tokens.
        steps: m.
        min_distance: l.
    """
    drop = -np.diff(np.exp(delimiter_log_probs.astype(np.float64)))
    length, chosen = len(drop), []
    for i in np.argsort(-drop, kind="stable"):
        if len(chosen) == steps - 1 or drop[i] <= 0:
            break
        if all(abs(i - other) >= min_distance for other in (0, length, *chosen)):
            chosen.append(int(i))
    return np.array([0] * (steps - 1 - len(chosen)) + sorted(chosen), int)
