"""Libra's pipeline (arXiv 2507.21645) as a config, and the figures and the table that come of it."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nrt_jax.errors import UserError
from nrt_jax.rewards import JudgeConfig
from nrt_jax.rewards.judge import Judge, Judgement
from nrt_jax.tasks.judging import Judged
from nrt_jax.training.ablation import spread
from nrt_jax.training.config import TrainConfig
from nrt_jax.training.pretrain import PretrainConfig

#: Judges that are measured, and policies that are trained, by the name of their folder -> heading in the tables.
JUDGES = {
    "base": "base",
    "direct": "after SFT on verdicts alone",
    "sft": "after SFT on thoughts",
    "grpo": "after SFT on thoughts and GRPO",
}
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

    def validate(self) -> None:
        """Raises UserError for values that cannot work, before anything is made."""
        for field in ("questions", "tests", "samples", "keep"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}: {getattr(self, field)} is not positive; expected a number above 0")
        for field in ("seeds", "generators"):
            if not getattr(self, field):
                raise UserError(f"{field}: is empty; expected one or more")
        if not 0 < self.other_share < 1:
            raise UserError(f"other_share: {self.other_share} cannot work; expected a number between 0 and 1")
        if not 0 <= self.min_answer_prob <= 1:
            raise UserError(f"min_answer_prob: {self.min_answer_prob} is no probability; expected 0 to 1")
        for seed in self.seeds:
            data = ("judging:train", "judging:test", ("chains", "other"), "sft")
            for run in (*self.judges("base", *data, seed).values(), *self.policies("grpo", seed).values()):
                run.validate()

    def judges(
        self, base: str, train: str, test: str, chains: tuple[str, str], tuned: str, seed: int
    ) -> dict[str, TrainConfig]:
        """The judges' runs in their order, by the names of `JUDGES`.

        Args:
            base: Model that the first two start from.
            train: Judging tasks.
            test: Judging tasks, held out.
            chains: Judging chains and other ones.
            tuned: Where the second one leaves the model that the third starts from.
            seed: Of all.
        """
        sft = dataclasses.replace(self.sft, model=base, seed=seed)
        grpo = dataclasses.replace(self.grpo, model=tuned, data=(train,), seed=seed)
        weights = (1 - self.other_share, self.other_share)
        runs = {
            "direct": (dataclasses.replace(sft, objective="sft", data=(train,)), ()),
            "sft": (dataclasses.replace(sft, data=chains), weights),
            "grpo": (grpo, ()),
        }
        return {
            name: dataclasses.replace(run, dataset=dataclasses.replace(run.dataset, weights=shares, held_out=test))
            for name, (run, shares) in runs.items()
        }

    def policies(self, judge: str, seed: int) -> dict[str, TrainConfig]:
        """The policies' runs, by the names of `POLICIES`: the same policy, questions and sampling.

        Args:
            judge: Checkpoint; the policy that learns from it never sees a label.
            seed: Of all.
        """
        run = dataclasses.replace(self.policy, data=(self.data,), seed=seed)
        by_answer = dataclasses.replace(run, advantage=dataclasses.replace(run.advantage, clip="none"))
        judged, verified = (
            dataclasses.replace(by_answer, reward=dataclasses.replace(run.reward, intrinsic=0.0, **{name: 1.0}))
            for name in ("judge", "verifiable")
        )
        how = dataclasses.replace(self.judge, model=judge, thoughts=1)
        return {"with_judge": dataclasses.replace(judged, judge=how), "with_verifier": verified, "with_nrt": run}


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
