"""trl's GRPOTrainer with transformers' generate on torch CPU: seconds a rollout and a full step, random tiny Llama.

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl
    trl/bin/python trl_grpo.py --prompt-length 128 --trace-length 128 --prompts 8 --group-size 4

Every row decodes all Z tokens (no EOS), or stops at any of the last `--stops` of the vocabulary. Prints one JSON line;
the first step, which warms up, is left out.
"""

import argparse
import json
import os
import resource
import tempfile
import time

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled", TOKENIZERS_PARALLELISM="false")
import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

parser = argparse.ArgumentParser()
for name, default in (("prompt", 128), ("trace", 128)):
    parser.add_argument(f"--{name}-length", type=int, default=default)
for name, default in (("prompts", 8), ("group-size", 4), ("stops", 0), ("steps", 6)):
    parser.add_argument(f"--{name}", type=int, default=default)
args = parser.parse_args()
X, Z, P, K = args.prompt_length, args.trace_length, args.prompts, args.group_size
STOPS, STEPS = args.stops, args.steps
torch.manual_seed(0)
vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
for i in range(256):
    vocab[chr(i + 300)] = len(vocab)
while len(vocab) < 4096:
    vocab[f"x{len(vocab)}"] = len(vocab)
core = Tokenizer(models.WordLevel(vocab, unk_token="</s>"))
core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
)
model = AutoModelForCausalLM.from_config(
    LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
    dtype=torch.float32,
)
stamps, rollouts = [], []


def reward(completions, **kw):
    stamps.append(time.time())
    return [float(len(set(c))) for c in completions]


data = Dataset.from_list([{"prompt": "".join(chr(300 + (i * j) % 256) for j in range(X))} for i in range(P * STEPS)])
config = GRPOConfig(
    output_dir=tempfile.mkdtemp(),
    per_device_train_batch_size=P * K,
    num_generations=K,
    max_completion_length=Z,
    generation_kwargs={"eos_token_id": list(range(4096 - STOPS, 4096))} if STOPS else {"min_new_tokens": Z},
    max_steps=STEPS,
    report_to=[],
    use_cpu=True,
    beta=0.0,
    bf16=False,
    learning_rate=1e-5,
    save_strategy="no",
    gradient_checkpointing=False,
    temperature=1.0,
)
trainer = GRPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer)
name = next(n for n in ("_generate_single_turn", "_generate") if hasattr(trainer, n))
inner = getattr(trainer, name)


def timed(*a, **k):
    start = time.time()
    out = inner(*a, **k)
    rollouts.append(time.time() - start)
    return out


setattr(trainer, name, timed)
trainer.train()
print(
    json.dumps(
        {
            "peer": "trl",
            "rollout_s": [round(s, 3) for s in rollouts[1:]],
            "tokens": None if STOPS else P * K * Z,
            "step_s": [round(float(d), 3) for d in np.diff(stamps)[1:]],
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    )
)
