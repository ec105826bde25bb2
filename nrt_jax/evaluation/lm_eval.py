"""A checkpoint as EleutherAI's lm-eval sees a model: log-likelihoods of continuations, and text until a stop string.

Requests are encoded, truncated and cut as lm-eval's own `hf` model does, so that the same weights give the same
results. What differs is who computes: requests are sorted by length and padded to a few sizes, one program each;
completions are decoded continuously, and end soon after a stop string.
"""

import collections
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import lm_eval
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table

from nrt_jax.data import Example
from nrt_jax.data.encode import Encoder, bucket, pad
from nrt_jax.errors import UserError
from nrt_jax.evaluation import generation
from nrt_jax.evaluation.attempts import DecodingConfig
from nrt_jax.evaluation.batching import batches
from nrt_jax.models import Model, Params
from nrt_jax.rollout import Truncation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

MAX_GEN_TOKS = 256  # The default of lm-eval's `hf` model.
_CHUNK = 512  # Positions whose logits are in memory at once.


@dataclasses.dataclass(frozen=True, eq=False)
class Thinking:
    """How a checkpoint reasons before it answers a request.

    Attributes:
        encoder: Template and trace format; a request's context is the question.
        max_trace_length: Most tokens of a trace, which is then ended by the delimiter.
    """

    encoder: Encoder
    max_trace_length: int


class NRTModel(TemplateLM):
    """A model of this framework for `lm_eval.simple_evaluate`."""

    def __init__(
        self,
        model: Model,
        params: Params,
        tokenizer: "Tokenizer",
        stop_ids: Sequence[int],
        config: DecodingConfig,
        thinking: Thinking | None = None,
    ):
        """Takes what `checkpoints.load` gives.

        Args:
            model: The policy.
            params: Its parameters.
            tokenizer: Its tokenizer.
            stop_ids: Tokens that end a completion (`generation.stop_ids`).
            config: Batch and chunk size, seed; the temperature comes with each request.
            thinking: None for plain completions.
        """
        super().__init__()
        self.model, self.params, self.tokenizer, self.config = model, params, tokenizer, config
        self.stop_ids, self.thinking = tuple(stop_ids), thinking
        self.max_length = model.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a continuation without a context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of lm-eval's request cache."""
        return self.tokenizer.name_or_path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, if one is asked for."""
        return self.tokenizer.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer puts around it, but BOS not twice."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode([self.prefix_token_id]))
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in disjoint windows of the model's length."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scores = iter(self._loglikelihood_tokens([window for part in windows for window in part]))
        return [sum(next(scores)[0] for _ in part) for part in windows]

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs):
        """log p of each continuation after its context, and whether it is the greedy one; long ones lose their left."""
        inputs = [(context + continuation)[-(self.max_length + 1) :][:-1] for _, context, continuation in requests]
        targets = [continuation for _, _, continuation in requests]
        found: dict[int, tuple[float, bool]] = {}
        keys = [(bucket(len(ids)), bucket(len(target))) for ids, target in zip(inputs, targets, strict=True)]
        for part in batches(keys, self.config.batch_size):
            tokens, mask = pad([inputs[i] for i in part])
            wanted, wanted_mask = pad([targets[i] for i in part])
            start = np.array([len(inputs[i]) - len(targets[i]) for i in part], np.int32)
            scores, is_greedy = jax.device_get(
                _score(self.model, self.params, tokens, mask, start, wanted, wanted_mask)
            )
            found |= {i: (float(scores[j]), bool(is_greedy[j])) for j, i in enumerate(part)}
        return [found[i] for i in range(len(requests))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions up to a stop string, EOS or the request's number of tokens."""
        groups = collections.defaultdict(list)
        for i, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(i)
        texts: dict[int, str] = {}
        for part in groups.values():
            options = _Options.of(requests[part[0]].args[1], self.tokenizer)
            completed = self._complete([requests[i].args[0] for i in part], part, options)
            texts |= dict(zip(part, completed, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _complete(self, contexts: Sequence[str], rows: Sequence[int], options: "_Options") -> list[str]:
        room = self.max_length - options.max_new_tokens
        if self.thinking is None:
            prompts = [self.tok_encode(text) for text in contexts]
        else:
            room -= self.thinking.max_trace_length + 1
            prompts = [list(self.thinking.encoder.encode(Example(text, "")).prompt) for text in contexts]
        if room < 1:
            raise UserError(
                f"lm_eval: completions of {self.max_length - room} tokens leave no room for a prompt in the model's "
                f"{self.max_length}; expected fewer (--decoding.max-trace-length, or the task's max_gen_toks)"
            )
        prompts = [ids[-room:] for ids in prompts]
        if self.thinking is not None:
            traces = self._sample(prompts, rows, options, self.thinking.encoder.format.stop_ids, None, 1)
            delimiter = self.thinking.encoder.format.delimiter
            prompts = [[*ids, *trace, delimiter] for ids, trace in zip(prompts, traces, strict=True)]
        sampled = self._sample(prompts, rows, options, self.stop_ids, self._has_stop(options.until), 0)
        return [self._cut(ids, options.until) for ids in sampled]

    def _sample(self, prompts, rows, options, stop_ids, is_over, stage) -> list[list[int]]:
        """Completions without their stop tokens; each stage draws with a seed of its own."""
        limit = self.thinking.max_trace_length if stage else options.max_new_tokens
        done: dict[int, list[int]] = {}
        for completions in generation.complete(
            self.model,
            self.params,
            prompts,
            rows,
            stop_ids=stop_ids,
            max_new_tokens=limit,
            temperature=options.temperature,
            truncation=options.truncation,
            seed=(self.config.seed + stage) % 2**32,
            batch_size=self.config.batch_size,
            chunk_size=min(self.config.chunk_size, limit),
            is_over=is_over,
        ):
            done |= {i: x.token_ids[: len(x.token_ids) - (x.finish_reason == "stop")] for i, x in completions.items()}
        return [done[i] for i in range(len(prompts))]

    def _has_stop(self, until: Sequence[str]):
        strings = [text for text in until if text]
        return lambda tokens: any(text in self.tokenizer.decode(tokens, skip_special_tokens=True) for text in strings)

    def _cut(self, ids: Sequence[int], until: list[str]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return postprocess_generated_text(text, stop=until, think_end_token=None)


@dataclasses.dataclass(frozen=True)
class _Options:
    """A request's `gen_kwargs`."""

    until: list[str]
    max_new_tokens: int
    temperature: float
    truncation: Truncation

    @classmethod
    def of(cls, given: Mapping[str, Any], tokenizer: "Tokenizer") -> "_Options":
        options = dict(normalize_gen_kwargs(dict(given), MAX_GEN_TOKS))
        until = handle_stop_sequences(options.pop("until", None), eos=tokenizer.decode([tokenizer.eos_token_id]))
        temperature, is_sampled = options.pop("temperature", 0.0), options.pop("do_sample", False)
        truncation = Truncation.of(options.pop("top_k", 0), options.pop("top_p", 1.0), options.pop("min_p", 0.0))
        limit = options.pop("max_gen_toks")
        if options:
            raise UserError(
                f"lm_eval: the task's generation_kwargs have {', '.join(options)}; expected until, max_gen_toks, "
                "do_sample, temperature, top_k, top_p or min_p alone"
            )
        return cls(until, limit, float(temperature) if is_sampled else 0.0, truncation)


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, tokens, mask, start, targets, target_mask):
    """Of B rows: sum of log p(target_j | tokens up to start + j), and whether all of them have the largest logit.

    Args:
        model: The policy.
        params: Its parameters.
        tokens: [B, T] int32, right-padded.
        mask: [B, T] bool.
        start: [B] int32, position that predicts the first target.
        targets: [B, Y] int32, right-padded.
        target_mask: [B, Y] bool.
    """
    positions = jnp.where(mask, jnp.arange(tokens.shape[1]), -1)
    hidden, _ = model.apply(params, tokens[:, None], positions[:, None])
    where = jnp.minimum(start[:, None] + jnp.arange(targets.shape[1]), tokens.shape[1] - 1)
    hidden = jnp.take_along_axis(hidden[:, 0], where[..., None], axis=1)
    head = model.head(params).astype(hidden.dtype)

    def of_token(inputs):
        hidden, target = inputs
        logits = jnp.einsum("d,vd->v", hidden, head, preferred_element_type=jnp.float32)
        return jax.nn.log_softmax(logits)[target], jnp.argmax(logits) == target

    flat = (hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1))
    log_probs, is_greedy = jax.lax.map(of_token, flat, batch_size=min(_CHUNK, targets.size))
    log_probs = jnp.where(target_mask, log_probs.reshape(targets.shape), 0.0)
    return jnp.sum(log_probs, -1), jnp.all(is_greedy.reshape(targets.shape) | ~target_mask, -1)


@dataclasses.dataclass(frozen=True)
class Found:
    """What lm-eval found.

    Attributes:
        content: Its results, as JSON takes them, without samples.
        samples: Every question of every task.
        table: For people.
    """

    content: dict[str, Any]
    samples: list[dict[str, Any]]
    table: str


def open_tasks(names: Sequence[str], include_path: str | None) -> list[Any]:
    """Finds tasks and loads their data.

    Args:
        names: Of tasks, groups and tags; patterns, too.
        include_path: Folder of task files, beside those that lm-eval ships.

    Returns:
        Tasks and groups of lm-eval.

    Raises:
        UserError: There is no task of that name, it cannot be loaded, or it is not for models of text.
    """
    manager = TaskManager(include_path=include_path)
    matches = {name.strip(): manager.match_tasks([name.strip()]) for name in names}
    unknown = [name for name, found in matches.items() if not found]
    if unknown:
        raise UserError(f"lm_eval: no task {', '.join(unknown)}; expected names of lm-eval (lm-eval ls tasks)")
    opened: list[Any] = []
    for name in dict.fromkeys(name for found in matches.values() for name in found):
        loaded = _loaded(manager, [name], name)
        for task_name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise UserError(f"lm_eval: {task_name} runs code of the model, or shows images; expected another task")
        opened += [loaded["groups"][name]] if name in loaded["groups"] else loaded["tasks"].values()
    _loaded(manager, opened, ", ".join(names))  # Whether they go together.
    return opened


def _loaded(manager: TaskManager, tasks: list[Any], what: str) -> Mapping[str, Any]:
    try:
        return manager.load(tasks)
    except Exception as error:  # A task's own code, YAML and data set fail in ways of their own.
        (problem, *_) = [*str(error).splitlines(), type(error).__name__]
        raise UserError(
            f"lm_eval: {what} cannot be loaded ({problem}); expected a task whose data is within reach, on disk or by "
            "network, and tasks that do not overlap"
        ) from error


def run(model: NRTModel, tasks: Sequence[Any], **options: Any) -> Found:
    """Runs tasks.

    Args:
        model: The checkpoint.
        tasks: Of `open_tasks`.
        options: Of `lm_eval.simple_evaluate`.
    """
    # Without a manager it would read all task files once more.
    manager = TaskManager(include_defaults=False)
    found = lm_eval.simple_evaluate(model, tasks=list(tasks), task_manager=manager, **options)
    samples = [{"task": task} | sample for task, rows in found.pop("samples").items() for sample in rows]
    plain = json.loads(json.dumps([found, samples], default=str))
    names = ("results", "groups", "versions", "n-shot", "n-samples")
    kept = {name: plain[0][name] for name in names if name in plain[0]}
    return Found(kept, plain[1], make_table(found))
