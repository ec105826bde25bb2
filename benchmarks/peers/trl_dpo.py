"""The same steps of direct preference optimisation here and in trl's DPOTrainer: metrics side by side, on a tiny Llama.

    python -m venv trl && trl/bin/pip install torch==2.13.0 && trl/bin/pip install trl
    python benchmarks/peers/trl_dpo.py --trl trl/bin/python --folder FOLDER

Both start from one random model of one layer and see all twelve pairs in every step, as token ids; AdamW, float32.
"""

import argparse
import json
import pathlib
import subprocess
import sys

LOSSES, STEPS = ("sigmoid", "ipo"), 5
OPTIMIZER = {"learning_rate": 2e-3, "weight_decay": 0.0}
NAMES = {
    "loss": "loss",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "preference_accuracy": "rewards/accuracies",
    "log_prob_chosen": "logps/chosen",
    "log_prob_rejected": "logps/rejected",
    "gradient_norm": "grad_norm",
}


def ours(folder: pathlib.Path) -> None:
    """Runs both losses, and writes the pairs' ids, the model before training and the records."""
    import dataclasses

    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    from nrt_jax import hf
    from nrt_jax.objectives import DPOConfig
    from nrt_jax.training import loop
    from nrt_jax.training.optimizer import OptimizerConfig
    from nrt_jax.training.setup import prepare
    from tests.fixtures_run import records, write_config
    from tests.training.test_preference import pairs

    config = write_config(folder)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs(12)))
    config = dataclasses.replace(
        config,
        objective="dpo",
        data=(str(folder / "pairs.jsonl"),),
        steps=STEPS,
        rollout=dataclasses.replace(config.rollout, prompts=12),
        optimizer=OptimizerConfig(eps=1e-6, **OPTIMIZER),
        evaluation=dataclasses.replace(config.evaluation, every=0, questions=1, examples=0),
    )
    setup = prepare(config)
    hf.save(folder / "start", setup.model, setup.params, setup.tokenizer, source=setup.model_folder)
    ids = [{"prompt_ids": r.prompt, "chosen_ids": r.pair[0], "rejected_ids": r.pair[1]} for r in setup.train]
    (folder / "ids.json").write_text(json.dumps(ids))
    for name in LOSSES:
        run = dataclasses.replace(config, dpo=DPOConfig(loss=name))
        loop.train(run, prepare(run), folder / name, lambda line: None)
        (folder / f"{name}.json").write_text(json.dumps(records(folder / name)))


def theirs(folder: pathlib.Path) -> None:
    """Runs both losses in trl, and prints every metric beside ours."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset  # It is tokenized.

    rows = json.loads((folder / "ids.json").read_text())
    for name in LOSSES:
        model = AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder / "start")
        tokenizer.pad_token = tokenizer.eos_token
        config = DPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=len(rows),
            max_steps=STEPS,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            adam_epsilon=1e-6,
            loss_type=[name],
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            gradient_checkpointing=False,
            **OPTIMIZER,
        )
        trainer = Trainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
        trainer.train()
        for mine, their in zip(
            json.loads((folder / f"{name}.json").read_text()), trainer.state.log_history, strict=False
        ):
            cells = [f"{ours_} {mine[ours_]:.6f} {float(their[key]):.6f}" for ours_, key in NAMES.items()]
            print(f"{name} step {mine['step']}: {'  '.join(cells)}")
        trained = AutoModelForCausalLM.from_pretrained(folder / name / "hf").state_dict()
        gaps = [(trained[key] - value).abs().max().item() for key, value in model.state_dict().items()]
        print(f"{name}: largest difference of a parameter after {STEPS} steps {max(gaps):.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trl")
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.trl:
        ours(args.folder)
        subprocess.run([args.trl, __file__, "--folder", str(args.folder)], check=True)
    else:
        theirs(args.folder)
