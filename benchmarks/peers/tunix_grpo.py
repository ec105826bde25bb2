"""google-tunix 0.1.7, vanilla engine: seconds a rollout and a full GRPO step, on a random tiny Llama (CPU).

    python -m venv tunix && tunix/bin/pip install google-tunix==0.1.7 jax
    tunix/bin/python tunix_grpo.py --prompt-length 128 --trace-length 128 --prompts 8 --group-size 4

Its best case: kv_cache_size = X + Z. Every row decodes all Z tokens, or stops at any of the last `--stops` of the
vocabulary. Prints one JSON line; the first step, which compiles, is left out. With `--work rollout` nothing is trained.
"""

import argparse
import json
import os
import resource
import time

os.environ["JAX_PLATFORMS"] = "cpu"
import grain
import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.rl import rl_cluster as rlc
from tunix.rl.grpo import grpo_learner as grpo
from tunix.rl.rollout import base_rollout

parser = argparse.ArgumentParser()
for name, default in (("prompt", 128), ("trace", 128)):
    parser.add_argument(f"--{name}-length", type=int, default=default)
for name, default in (("prompts", 8), ("group-size", 4), ("stops", 0), ("steps", 6)):
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--work", choices=("rollout", "step"), default="step")
args = parser.parse_args()
X, Z, P, K = args.prompt_length, args.trace_length, args.prompts, args.group_size
STOPS, STEPS = args.stops, args.steps


class Bytes:
    def encode(self, s, **kw):
        return [b + 3 for b in s.encode()]

    def decode(self, ids, **kw):
        return bytes(int(i) - 3 for i in ids if 3 <= int(i) < 259).decode("utf-8", "replace")

    def bos_id(self):
        return 1

    def eos_id(self):
        return 4095

    def pad_id(self):
        return 0


cfg = llama.ModelConfig(
    num_layers=4,
    vocab_size=4096,
    embed_dim=256,
    hidden_dim=512,
    num_heads=8,
    head_dim=32,
    num_kv_heads=4,
    rope_theta=1_000_000,
    norm_eps=1e-5,
)
mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
with mesh:
    actor, reference = (llama.Llama3(cfg, rngs=nnx.Rngs(0)) for _ in range(2))
role = rlc.Role
cluster = rlc.RLCluster(
    actor=actor,
    reference=reference,
    tokenizer=Bytes(),
    cluster_config=rlc.ClusterConfig(
        role_to_mesh={role.ACTOR: mesh, role.REFERENCE: mesh, role.ROLLOUT: mesh},
        rollout_engine="vanilla",
        training_config=rlc.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-5),
            eval_every_n_steps=10**6,
            max_steps=STEPS,
            mini_batch_size=P,
            train_micro_batch_size=P,
            rollout_micro_batch_size=P,
            compute_logps_micro_batch_size=P,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=Z,
            max_prompt_length=X,
            kv_cache_size=X + Z,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            seed=0,
            eos_tokens=list(range(4096 - STOPS, 4096)) if STOPS else None,
        ),
    ),
)
stamps, rollouts = [], []


def reward(prompts, completions, **kw):
    stamps.append(time.time())
    return [float(len(set(c))) for c in completions]


generate = cluster.generate


def timed(*a, **k):
    start = time.time()
    out = generate(*a, **k)
    rollouts.append((time.time() - start, sum(len(t) for t in out.tokens)))
    return out


cluster.generate = timed
rows = [{"prompts": ("What is %d+%d? " % (i, i) * X)[: X - 2], "answer": str(2 * i)} for i in range(P * STEPS)]
learner = grpo.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=reward,
    algo_config=grpo.GRPOConfig(num_generations=K, num_iterations=1, beta=0.0, epsilon=0.2),
)
with mesh:
    if args.work == "step":
        learner.train(grain.MapDataset.source(rows).batch(P))
    else:
        for step in range(STEPS):
            group = [row["prompts"] for row in rows[step * P : (step + 1) * P] for _ in range(K)]
            cluster.generate(group, micro_batch_size=P * K)
print(
    json.dumps(
        {
            "peer": "google-tunix",
            "rollout_s": [round(s, 3) for s, _ in rollouts[1:]],
            "tokens": rollouts[-1][1],
            "step_s": [round(float(d), 3) for d in np.diff(stamps)[1:]],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
