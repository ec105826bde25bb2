"""What evaluation takes of each device, from shapes: it runs before the first step, and must fit too.

A replica samples trace and answer of a whole batch of held-out questions at once (`evaluation.accuracy`), so that its
caches follow from `evaluation.batch_size`, not from `rollout.max_rows`. The program holds a loop for every size of its
cache, which takes minutes to compile; what it holds for certain is counted instead.
"""

import jax.numpy as jnp

from nrt_jax import parallel
from nrt_jax.evaluation import Limits
from nrt_jax.evaluation.accuracy import sampling_of
from nrt_jax.rollout import SamplingConfig
from nrt_jax.training import plan
from nrt_jax.training.plan import Run
from nrt_jax.training.programs import Memory, size_on_device


def memory(run: Run, weights: float = 0.0) -> Memory:
    """Least bytes of evaluation on each device, all texts as long as they may be; activations come on top.

    Args:
        run: The run.
        weights: Of the policy's matrices, laid out for decoding.
    """
    copy = plan.copy_of(run)
    taken = size_on_device(copy) if run.layout is None else 0.0  # One device's are the trainer's.
    caches = num_questions(run) * slots(run) * slot_size(run)
    return Memory(size_on_device(copy), 0.0, 0.0, temporaries=weights + caches, beside=run.kept - taken)


def num_questions(run: Run) -> int:
    """Questions of a batch."""
    return min(run.config.evaluation.batch_size, run.config.evaluation.questions)


def slots(run: Run) -> int:
    """Of a question's caches: its prompt's, also as rows read it, its row's and the one that the row is stored in."""
    how, prompt = sampling(run), run.questions(1).prompts.tokens.shape[1]
    return 2 * prompt + how.capacity(how.max_new_tokens) + how.max_new_tokens


def slot_size(run: Run) -> float:
    """Bytes of a token's keys and values on each device, in the compute dtype."""
    model = run.model.config
    with parallel.on(plan.copy_of(run)):
        heads = model.num_kv_heads // parallel.num_shards("kv_heads", model.num_kv_heads)
    return 2.0 * model.num_layers * heads * model.head_dim * jnp.dtype(run.config.dtype).itemsize


def sampling(run: Run) -> SamplingConfig:
    """How evaluation samples."""
    config = run.config
    answer = config.text.max_answer_length
    limits = Limits(trace=config.rollout.max_trace_length, answer=answer, chunk_size=config.rollout.chunk_size)
    return sampling_of(config.evaluation, limits, eos=2)
