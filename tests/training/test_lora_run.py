"""A whole run with adapters, on a base that lacks the delimiter: what is trained, exported, and loaded again."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from launch import cli, convert, score
from nrt_jax import checkpoints, hf
from nrt_jax.data.formats import TraceFormatConfig
from nrt_jax.errors import UserError
from nrt_jax.evaluation import EvaluationConfig
from nrt_jax.models import LoRAConfig
from nrt_jax.training import loop
from nrt_jax.training.config import CheckpointConfig, RolloutConfig, TrainConfig
from nrt_jax.training.optimizer import OptimizerConfig
from nrt_jax.training.setup import prepare
from tests.fixtures_run import examples, records, write_model, write_rows

DELIMITER = "<|answer|>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config of a run of two steps, and its folder."""
    folder = tmp_path_factory.mktemp("lora")
    config = TrainConfig(
        model=str(write_model(folder / "base")),
        data=(str(write_rows(folder / "train.jsonl", examples(12))),),
        steps=2,
        updates_per_step=1,
        trace=TraceFormatConfig(closing=DELIMITER, add_tokens="any"),
        rollout=RolloutConfig(prompts=4, group_size=2, max_trace_length=8),
        lora=LoRAConfig(rank=2, alpha=4.0, targets=("q", "v", "down")),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        evaluation=EvaluationConfig(questions=1, batch_size=1),
        checkpoint=CheckpointConfig(every=1),
    )
    loop.train(config, prepare(config), folder / "run", lambda line: None)
    return config, folder / "run"


def test_the_base_stays_and_the_delimiters_row_leaves_that_of_eos(run):
    config, folder = run
    base, base_params, tokenizer = hf.load(config.model)
    model, params, grown = hf.load(folder / "hf")
    assert model.config == dataclasses.replace(base.config, vocab_size=base.config.vocab_size + 1)
    assert len(grown) == len(tokenizer) + 1
    known = base.config.vocab_size
    for name in ("embedding", "head"):
        np.testing.assert_array_equal(params[name][:known], base_params[name])
        assert (params[name][hf.token_id(grown, DELIMITER)] != base_params[name][tokenizer.eos_token_id]).any()
    changed = {name for name, leaf in params["layers"].items() if (leaf != base_params["layers"][name]).any()}
    assert changed == {"q", "v", "down"}
    assert (params["final_norm"] == base_params["final_norm"]).all()


def test_run_folder_adapter_folder_and_merged_folder_are_one_policy(run, tmp_path):
    _, folder = run
    model, params, _ = checkpoints.load(folder / "hf")
    args = ["to-hf", str(folder), str(tmp_path / "converted")]
    cli.run(convert.main, convert.ConvertConfig, "convert", "", args=args)
    for path in (folder, folder / "checkpoints" / "2", folder / "adapter", tmp_path / "converted"):
        other, other_params, tokenizer = checkpoints.load(path)
        assert other == model
        chex.assert_trees_all_close(other_params, params, rtol=0, atol=1e-6)
        assert hf.token_id(tokenizer, DELIMITER) == len(tokenizer) - 1


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_exports_of_a_bfloat16_run_are_the_base_plus_the_adapter_in_float32(run, tmp_path, stored):
    """In bfloat16 most of an adapter's small change would be rounded away."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    config, _ = run
    model, params, tokenizer = hf.load(config.model)
    hf.save(tmp_path / "base", model, params, tokenizer, dtype=stored)
    half = dataclasses.replace(config, model=str(tmp_path / "base"), dtype="bfloat16", steps=1)
    loop.train(half, prepare(half), tmp_path / "run", lambda line: None)
    args = ["to-hf", str(tmp_path / "run"), str(tmp_path / "converted"), "--dtype", "float32"]
    cli.run(convert.main, convert.ConvertConfig, "convert", "", args=args)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs.resize_token_embeddings(len(hf.load_tokenizer(tmp_path / "run" / "hf")), mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "run" / "adapter").merge_and_unload().state_dict()
    for name in ("run/hf", "converted"):
        ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert ours.dtype == torch.float32
        for key, tensor in ours.state_dict().items():
            np.testing.assert_allclose(tensor, theirs[key], rtol=0, atol=1e-6, err_msg=key)


def test_score_takes_template_and_trace_format_from_the_run_unless_told_otherwise(run, tmp_path):
    _, folder = run
    row = {"question": "What is 50 plus 3?", "trace": "50 + 3 = 53", "answer": "It is 53."}
    (tmp_path / "qa.jsonl").write_text(json.dumps(row))

    def scored(checkpoint, *flags):
        args = [f"--checkpoint={checkpoint}", f"--input={tmp_path}/qa.jsonl", f"--output={tmp_path}/out.jsonl", *flags]
        cli.run(score.main, score.ScoreConfig, "score", "", implied=score.as_in_training, args=args)
        return json.loads((tmp_path / "out.jsonl").read_text())["token_log_probs"]

    closing = ("--trace.closing", DELIMITER)
    own, given, other = scored(folder), scored(folder / "hf", *closing), scored(folder, "--trace.closing", "</think>")
    np.testing.assert_allclose(own, given, rtol=0, atol=1e-5)
    assert np.abs(np.subtract(own, other)).max() > 1e-3


def test_generation_from_an_adapter_stops_where_its_base_does(run, tmp_path):
    config, folder = run
    location = checkpoints.locate(folder / "adapter")
    assert str(location.base) == config.model
    assert not (location.description / "generation_config.json").exists()


def test_adapters_want_a_hugging_face_folder_as_their_base(run):
    config, folder = run
    with pytest.raises(UserError, match="is no Hugging Face folder, which adapters need"):
        prepare(dataclasses.replace(config, model=str(folder)))
    whole = prepare(dataclasses.replace(config, model=str(folder), lora=LoRAConfig()))  # without adapters it goes on
    chex.assert_trees_all_close(whole.params, hf.load(folder / "hf")[1], rtol=0, atol=1e-6)


def test_checkpoints_hold_the_adapters_alone(run):
    config, folder = run
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file())
    assert size < 100_000  # the base alone has 44 kB of params, and Adam would triple them
    trained = jax.tree.leaves(prepare(config).params)
    layer = 16 * 2 + 2 * 16 + 16 * 2 + 2 * 8 + 24 * 2 + 2 * 16
    assert sum(leaf.size for leaf in trained) == layer + 2 * 16


def test_it_resumes_exactly(run, tmp_path):
    config, folder = run
    shorter = dataclasses.replace(config, steps=1)
    for part in (shorter, config):
        loop.train(part, prepare(part), tmp_path, lambda line: None)
    assert records(folder) == records(tmp_path)
    assert [abs(record["sampler_trainer_kl"]) < 1e-6 for record in records(folder)] == [True, True]
    chex.assert_trees_all_equal(hf.load(folder / "hf")[1], hf.load(tmp_path / "hf")[1])


def test_peft_goes_on_from_the_exported_adapter(run):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    import transformers

    config, folder = run
    description = json.loads((folder / "adapter" / hf.ADAPTER_CONFIG_FILE).read_text())
    assert description["base_model_name_or_path"] == config.model
    model, params, tokenizer = hf.load(folder / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(config.model)
    theirs.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "adapter").eval()
    ids = np.arange(12)[None]
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.logits(params, ids), expected, rtol=0, atol=1e-5)
