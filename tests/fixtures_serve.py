"""What tests of generate and score share: transformers' own checkpoints, its log-probabilities, the commands' runs."""

import json
import pathlib

import numpy as np
import torch
import transformers

from launch import cli
from tests.fixtures_run import tokenizer

SIZES = {
    "vocab_size": len(tokenizer()),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "bos_token_id": tokenizer().bos_token_id,
    "eos_token_id": tokenizer().eos_token_id,
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=9),
}


def write_checkpoint(folder: pathlib.Path, family: str, **generation) -> transformers.PreTrainedModel:
    """Saves a random model that is far from initialisation, with a tokenizer, and returns it.

    Args:
        folder: The folder to make.
        family: Which of `FAMILIES`.
        generation: What generation_config.json says besides.
    """
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    for tensor in model.parameters():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data.copy_(1.0 + 0.3 * noise if tensor.ndim == 1 else 2.0 * noise / tensor.shape[-1] ** 0.5)
    model.generation_config.update(**generation)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.eval()


def torch_log_probs(model, ids: list[int], num_last: int, temperature: float = 1.0) -> np.ndarray:
    """log p of each of the last `num_last` ids given all before it."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -num_last - 1 : -1]
    log_probs = torch.log_softmax(logits.double() / temperature, -1)
    return log_probs[torch.arange(num_last), torch.tensor(ids[-num_last:])].numpy()


def write_jsonl(path: pathlib.Path, rows: list) -> pathlib.Path:
    """Writes one row a line; a string is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(command, config_type, folder: pathlib.Path, checkpoint: pathlib.Path, rows: list, *flags: str) -> list[dict]:
    """Runs a command on rows as the shell would, and returns the rows that it wrote."""
    source, output = write_jsonl(folder / "in.jsonl", rows), folder / "out.jsonl"
    args = [f"--checkpoint={checkpoint}", f"--input={source}", f"--output={output}", *flags]
    cli.run(command, config_type, "python -m launch.command", "Does it.", args=args)
    return [json.loads(line) for line in output.read_text().splitlines()]
