"""Libra's pipeline (arXiv 2507.21645) as a config, and the figures and the table that come of it."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nrt_jax.rewards import JudgeConfig
from nrt_jax.rewards.judge import Judge, Judgement
from nrt_jax.tasks.judging import Judged
from nrt_jax.training.ablation import spread
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.pretrain import PretrainConfig

#: Judges that are measured, and policies that are trained, by the name of their folder -> heading in the tables.
JUDGES = {"base": "base", "sft": "after SFT", "grpo": "after SFT and GRPO"}
POLICIES = {
    "with_judge": "judge, unlabelled questions",
    "with_verifier": "verifier, labelled questions",
    "with_nrt": "NRT, labelled questions",
}


@dataclasses.dataclass(frozen=True)
class LibraConfig:
    """From a base model to a judge, and from the judge to a policy.

    Attributes:
        output: Folder of everything; what is finished in it is not run again.
        base: Model that becomes the judge; empty to pretrain one.
        pretrain: How.
        generators: Models whose answers are judged, to learn from and to test on, beside the base's.
        data: Questions that they answer; also the non-judging data of SFT, and the policy's questions.
        questions: Of `data`, that they answer.
        tests: Held-out questions that they answer.
        samples: Answers of each to each, and thoughts from which chains are kept.
        keep: Most chains a judging task.
        min_answer_prob: Least probability that the right verdict had after a chain: every second guess is right.
        other_share: Share of non-judging chains in SFT.
        seeds: Of chains, training and policies.
        judge: How judges are measured.
        sft: First stage.
        grpo: Second stage.
        policy: The run whose policy learns from NRT, from the judge, or from a verifier in the judge's place.
    """

    output: str = "runs/libra"
    base: str = ""
    pretrain: PretrainConfig = PretrainConfig(task=("judged_clock",))
    generators: tuple[str, ...] = ("tiny",)
    data: str = "clock"
    questions: int = 1500
    tests: int = 400
    samples: int = 4
    keep: int = 2
    min_answer_prob: float = 0.9
    other_share: float = 0.2
    seeds: tuple[int, ...] = (0, 1, 2)
    judge: JudgeConfig = JudgeConfig()
    sft: TrainConfig = TrainConfig()
    grpo: TrainConfig = TrainConfig()
    policy: TrainConfig = TrainConfig()


def measure(judge: Judge, rows: Sequence[Judged]) -> dict[str, Any]:
    """How well a judge judges rows whose labels are known; no verdict is a wrong one.

    Args:
        judge: The judge.
        rows: Judged responses, as many right as wrong.

    Returns:
        accuracy, of the vote; accuracy_soft, of P > 0.5; accuracy_without_thought, of P > 0.5 after the empty thought;
        unparseable, the share of thoughts without a verdict; says_correct, the share of votes for it; thought_words;
        rows, their number.
    """
    judgements = judge.judge([(row.question, row.response) for row in rows])
    return figures(judgements, [row.label for row in rows])


def figures(judgements: Sequence[Judgement], labels: Sequence[int]) -> dict[str, Any]:
    """`measure` of judgements that are there."""

    def accuracy(said: Iterable[int | None]) -> float:
        return statistics.fmean(found == label for found, label in zip(said, labels, strict=True))

    thoughts = [thought for j in judgements for thought in j.thoughts]
    return {
        "accuracy": accuracy(j.vote for j in judgements),
        "accuracy_soft": accuracy(int(j.soft > 0.5) for j in judgements),
        "accuracy_without_thought": accuracy(int(j.p_without_thought > 0.5) for j in judgements),
        "unparseable": sum(j.num_unparseable for j in judgements) / len(thoughts),
        "says_correct": statistics.fmean(j.vote == 1 for j in judgements),
        "thought_words": statistics.fmean(len(thought.split()) for thought in thoughts),
        "rows": len(judgements),
    }


def tables(judges: Mapping[str, Sequence[Mapping]], policies: Mapping[str, Sequence[Mapping]]) -> str:
    """Markdown tables: mean over seeds, with the lowest and highest.

    Args:
        judges: Figures of each seed, by the names of `JUDGES`.
        policies: Summaries of each seed, by the names of `POLICIES`.
    """
    columns = {
        "without a thought": "accuracy_without_thought",
        "thinking, vote": "accuracy",
        "thinking, soft": "accuracy_soft",
        "unparseable": "unparseable",
        "words a thought": "thought_words",
    }
    lines = [f"| judge | seeds | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    for name, rows in judges.items():
        cells = [_cell(row[key] for row in rows) for key in columns.values()]
        lines.append(f"| {JUDGES[name]} | {len(rows)} | {' | '.join(cells)} |")
    lines += ["", "| policy trained with | seeds | accuracy before | highest | after |", "|---|---|---|---|---|"]
    for name, rows in policies.items():
        cells = [_cell(row[key] for row in rows) for key in ("accuracy_before", "accuracy_best", "accuracy_after")]
        lines.append(f"| {POLICIES[name]} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Iterable[float]) -> str:
    values = list(values)
    return spread(values, digits=0 if max(values) > 1 else 3)
