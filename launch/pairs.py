"""Make pairs for direct preference optimisation of responses that have scores, such as a judge's P(correct).

python -m launch.pairs --input judged.jsonl --output pairs.jsonl

Of each question, the best response is chosen and the worst one rejected. A row of the output is {"question", "chosen",
"rejected", "score_chosen", "score_rejected"}, with the question's "subset", and its "reference" as "answer", if known.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from launch import cli
from nrt_jax import jsonl
from nrt_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Pairs of scored responses.

    Attributes:
        input: JSONL file. A row has a question, a response and a score; rows of one question need not be neighbours.
            Empty responses are left out and counted.
        output: JSONL file to write.
        question_column: Name of the question in a row.
        response_column: Name of the response: all of a completion that is to be learned, its trace included.
        score_column: Name of the score, a number of which more is better: `p_correct` of launch.judge, or `label`.
        min_gap: Least difference of the two scores; questions with a smaller one, and with equal ones, give no pair.
    """

    input: str
    output: str
    question_column: str = "question"
    response_column: str = "response"
    score_column: str = "p_correct"
    min_gap: float = 0.0


def main(config: PairsConfig) -> None:
    """Reads, chooses, writes."""
    if not (math.isfinite(config.min_gap) and config.min_gap >= 0):
        raise UserError(f"min_gap: {config.min_gap} cannot work; expected 0 or a number above it")
    rows = jsonl.read(config.input, field="input", adds=())
    jsonl.check_writable(config.output, field="output")
    by_question: dict[str, list[jsonl.Row]] = {}
    num_empty = 0
    for row in rows:
        response = row.text(config.response_column, may_be_empty=True)
        _score(row, config)
        group = by_question.setdefault(row.text(config.question_column), [])
        if response.strip():
            group.append(row)
        else:
            num_empty += 1  # It has a score, 0 or any other, and there is nothing in it to learn.
    pairs = list(filter(None, (_pair(question, group, config) for question, group in by_question.items() if group)))
    if not pairs:
        raise UserError(
            f"input: no pair is left of the {len(by_question)} questions of {config.input!r}, "
            f"{num_empty} of whose {len(rows)} responses are empty; expected some with two responses whose "
            f"{config.score_column!r} differ{f' by {config.min_gap}' if config.min_gap else ''}"
        )
    jsonl.write(config.output, pairs, field="output")
    print(
        f"{len(pairs)} pairs of {len(by_question)} questions with {len(rows)} responses, {num_empty} of which are "
        f"empty; the others have one response, or scores that do not differ; written to {config.output}"
    )


def _score(row: jsonl.Row, config: PairsConfig) -> float:
    value = row.values.get(config.score_column)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{row.where}: {config.score_column!r} is {value!r:.40}; expected a number (--score-column)")
    return value


def _pair(question: str, group: Sequence[jsonl.Row], config: PairsConfig) -> jsonl.Row | None:
    """The first of the best responses and the first of the worst; None where they are not far enough apart."""
    scores = [_score(row, config) for row in group]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    chosen, rejected = (group[i].text(config.response_column) for i in (best, worst))
    gap = scores[best] - scores[worst]
    if gap <= 0 or gap < config.min_gap or chosen.strip() == rejected.strip():
        return None
    values: dict[str, Any] = {"question": question, "chosen": chosen, "rejected": rejected}
    values |= {"score_chosen": scores[best], "score_rejected": scores[worst]}
    known = group[best].values
    values |= {name: known[source] for name, source in _KEPT if known.get(source)}
    return dataclasses.replace(group[best], values=values)


#: Columns of the output and of the input.
_KEPT = (("answer", "reference"), ("subset", "subset"))


if __name__ == "__main__":
    cli.run(main, PairsConfig, "python -m launch.pairs", __doc__)
