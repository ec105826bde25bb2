"""Padded token arrays: what goes from the host to the device."""

import flax.struct
import jax
import numpy as np


@flax.struct.dataclass(kw_only=True)
class Prompts:
    """Questions, each ending where the trace begins (template and opening tag included).

    Attributes:
        tokens: [P, X] int32, right-padded.
        mask: [P, X] bool, True on tokens.
    """

    tokens: jax.Array
    mask: jax.Array


@flax.struct.dataclass(kw_only=True)
class Reference:
    """Reference answers y*.

    Attributes:
        tokens: [P, Y] int32, the answer and EOS, right-padded.
        mask: [P, Y] bool, True on the answer and on EOS.
        delimiter: [] int32, the token between trace and answer.
    """

    tokens: jax.Array
    mask: jax.Array
    delimiter: jax.Array


@flax.struct.dataclass(kw_only=True)
class Batch:
    """P questions with their reference answers."""

    prompts: Prompts
    reference: Reference

    def take(self, index: np.ndarray) -> "Batch":
        """The questions of these indices."""
        delimiter = self.reference.delimiter
        rest = self.replace(reference=self.reference.replace(delimiter=None))
        taken = jax.tree.map(lambda x: x[index], rest)
        return taken.replace(reference=taken.reference.replace(delimiter=delimiter))
