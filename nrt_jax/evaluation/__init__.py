"""Evaluation on held-out questions."""

from nrt_jax.evaluation.accuracy import (
    Answered,
    EvaluationConfig,
    Limits,
    answer_questions,
    hard_tokens,
    summarise,
)

__all__ = [
    "Answered",
    "EvaluationConfig",
    "Limits",
    "answer_questions",
    "hard_tokens",
    "summarise",
]
