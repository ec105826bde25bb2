"""launch.meta: its pieces in order, none run twice, and the table of what they found."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from configs.meta import embedded
from launch import cli, meta
from nrt_jax import checkpoints, hf, merging, tasks
from nrt_jax.checkpoints import ASSETS
from nrt_jax.errors import UserError
from nrt_jax.training import loop
from nrt_jax.training.meta import MetaConfig, collect, tables
from nrt_jax.training.pretrain import Architecture, Phase
from tests.fixtures_run import write_model

PHASE = Phase(1, 1e-3, {"useful": 1.0})


def tiny(output, **changes) -> MetaConfig:
    """The demo with a model of one layer, one step and a few questions."""
    config = embedded.get_config()
    small = {"hidden_size": 16, "intermediate_size": 24, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}

    def short(recipe):
        return dataclasses.replace(
            recipe,
            steps=1,
            dataset=dataclasses.replace(recipe.dataset, size=8),
            rollout=dataclasses.replace(recipe.rollout, prompts=2, group_size=2, max_trace_length=8, chunk_size=8),
            evaluation=dataclasses.replace(recipe.evaluation, questions=2, batch_size=2, every=0),
        )

    pretraining = dataclasses.replace(
        config.pretraining,
        batch_size=2,
        architecture=Architecture(**small, head_dim=8, vocab_size=1000),
        skill=PHASE,
        habit=PHASE,
    )
    changed = {"output": str(output), "base": "", "seeds": (0,), "pretraining": pretraining} | changes
    return dataclasses.replace(config, recipe=short(config.recipe), domain=short(config.domain), **changed)


def tensors(folder) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "model.safetensors")


@pytest.fixture
def stubbed(tmp_path, monkeypatch):
    """Runs that note where they start and end at once: each adds its number to all weights of its model."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "base")
    started = []

    def train(run, prepared, folder, log):
        started.append((folder, run))
        weights = {name: tensor + np.float32(len(started)) for name, tensor in tensors(prepared).items()}
        (folder / "hf").mkdir(parents=True)
        for file in prepared.iterdir():
            (folder / "hf" / file.name).write_bytes(file.read_bytes())
        safetensors.numpy.save_file(weights, folder / "hf" / "model.safetensors")
        summary = {"accuracy_before": 0.1, "accuracy_after": 0.5, "steps": run.steps, "seconds": 1.0}
        (folder / "metrics.jsonl").write_text("")
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    monkeypatch.setattr("nrt_jax.training.meta.loop.train", train)
    monkeypatch.setattr("nrt_jax.training.meta.setup.prepare", lambda run: tmp_path / run.model)
    monkeypatch.setattr("nrt_jax.training.meta.accuracy", lambda run: 0.25)
    return started


def test_levels_follow_one_another_and_each_stage_starts_from_the_one_before(stubbed, tmp_path):
    config = tiny("out", base="base", levels=("1", "2"), seeds=(0, 3))
    meta.main(config)
    names = [str(folder.relative_to("out")) for folder, _ in stubbed]
    of_seed = ["deduction-1", "deduction-2", "induction-1", "induction-2", "abduction-1", "abduction-2"]
    assert names == [f"seed{s}/{x}" for s in (0, 3) for x in (*of_seed, "domain_from_base", "domain_from_merge")]
    for folder, run in stubbed:
        run.validate()
        assert run.seed == int(folder.parent.name.removeprefix("seed"))
        ability, _, level = folder.name.partition("-")
        if level:
            assert run.data == (ability,) and run.verifier.name == ability and run.dataset.level == level
            assert run.model == ("base" if level == "1" else str(folder.parent / f"{ability}-1" / "hf"))
        else:
            assert run.data == ("clock",) and run.verifier.name == "clock"
            assert run.model == ("base" if ability.endswith("base") else str(folder.parent / "merged"))
    base, merged = tensors(tmp_path / "base"), tensors(tmp_path / "out" / "seed0" / "merged")
    for name, tensor in base.items():
        specialists = [tensor + np.float32(1) + np.float32(2), tensor + np.float32(7), tensor + np.float32(11)]
        np.testing.assert_allclose(merged[name], merging.linear(specialists, (1.0, 0.2, 0.1)), rtol=1e-5, atol=1e-5)


def test_finished_pieces_are_not_run_again_and_others_are(stubbed, tmp_path, capsys):
    config = tiny("out", base="base")
    meta.main(config)
    assert len(stubbed) == 5
    meta.main(config)
    assert len(stubbed) == 5
    (tmp_path / "out" / "seed0" / "induction-mini" / "summary.json").unlink()
    (tmp_path / "out" / "seed0" / "induction-mini" / "hf" / "model.safetensors").unlink()
    (tmp_path / "out" / "seed0" / "induction-mini" / "hf").rename(tmp_path / "old")
    meta.main(dataclasses.replace(config, seeds=(0, 1)))
    assert [folder.name for folder, _ in stubbed[5:7]] == ["induction-mini", "deduction-mini"] and len(stubbed) == 11
    assert "| base | 0.25 (0.25 to 0.25) |" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds another run \(recipe.steps is 1 there, 2 here\)"):
        meta.main(dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, steps=2)))


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    for changes, line in (
        ({"weights": (1.0, 0.2)}, "weights: .* for 3 abilities; expected one for each"),
        ({"abilities": ("deduction", "induction", "seduction")}, "abilities: 'seduction' is no built-in task"),
        ({"seeds": ()}, "seeds: is empty"),
    ):
        with pytest.raises(UserError, match=line):
            meta.main(tiny(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_the_command_runs_from_pretraining_to_the_plot(tmp_path, monkeypatch):
    """One ability, which is the domain too, so that all runs share their programs."""
    config = tiny(tmp_path / "out", abilities=("induction",), weights=(1.0,))
    domain = config.specialist("induction", "mini", "", 0)
    pretraining = dataclasses.replace(config.pretraining, task=("induction",), level=("mini",))
    config = dataclasses.replace(config, domain=domain, pretraining=pretraining)
    meta.main(config)
    merged, specialist = (tmp_path / "out" / "seed0" / name for name in ("merged", "induction-mini/hf"))
    model, _, _ = hf.load(merged)
    assert model.config == hf.load(tmp_path / "out" / "base")[0].config
    assert all(np.array_equal(tensor, tensors(specialist)[name]) for name, tensor in tensors(merged).items())
    found = json.loads((tmp_path / "out" / "seed0" / "accuracy.json").read_text())
    assert found.keys() == {"base", "induction", "merge"}
    assert all(of_model.keys() == {"induction", "domain"} for of_model in found.values())
    assert (tmp_path / "out" / "tables.md").read_text().count("\n| ") == 6
    monkeypatch.setattr(loop, "train", lambda *_, **__: pytest.fail("a finished run was run again"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    meta.main(config)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}


def test_table_and_curves_are_means_over_seeds_with_the_lowest_and_highest(tmp_path):
    config = tiny(tmp_path, abilities=("induction",), weights=(1.0,), seeds=(0, 1, 2))
    for seed, shift in ((0, 0.0), (1, 0.1)):  # Seed 2 is not done yet.
        folder = tmp_path / f"seed{seed}"
        for start, after in (("base", 0.5), ("merge", 0.75)):
            run = folder / f"domain_from_{start}"
            run.mkdir(parents=True)
            (run / "summary.json").write_text(
                json.dumps({"accuracy_before": 0.1, "accuracy_after": after + shift, "steps": 4})
            )
            records = [{"step": 1, "loss": 0.0}, {"step": 2, "accuracy": 0.25 + shift}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        of_model = {"induction": 0.5 + shift, "domain": 0.25}
        (folder / "accuracy.json").write_text(json.dumps(dict.fromkeys(("base", "induction", "merge"), of_model)))
    accuracies, curves = collect(config)
    assert curves["merge"][1] == [(0, 0.1), (2, 0.35), (4, 0.85)]
    models, stage = tables(config, accuracies, curves).split("\n\n")
    assert models.splitlines()[0] == "| model | induction | domain |"
    assert models.splitlines()[3] == "| specialist, induction | 0.55 (0.50 to 0.60) | 0.25 (0.25 to 0.25) |"
    assert stage.splitlines()[0] == "| domain RL from | step 0 | step 2 | step 4 |"
    assert stage.splitlines()[2:] == [
        "| base | 0.10 (0.10 to 0.10) | 0.30 (0.25 to 0.35) | 0.55 (0.50 to 0.60) |",
        "| merge | 0.10 (0.10 to 0.10) | 0.30 (0.25 to 0.35) | 0.80 (0.75 to 0.85) |",
    ]


def test_the_shipped_base_is_small_and_reads_each_task_in_whole_words():
    assert sum(file.stat().st_size for file in (ASSETS / "tiny_meta").iterdir()) < 1_500_000
    tokenizer = checkpoints.locate("tiny_meta").tokenizer()
    config = embedded.get_config().pretraining
    for name, level in zip(config.task, config.level, strict=True):
        text = tasks.get(name).examples(1, 0, level=level)[0].question
        assert len(tokenizer(text, add_special_tokens=False).input_ids) < len(text) / 2


def test_the_demo_is_the_papers_method_and_can_run():
    config = cli.parse(MetaConfig, "prog", "", default_config="meta/embedded", args=[])
    config.validate()
    assert config.weights == (1.0, 0.2, 0.1) and config.abilities == ("deduction", "induction", "abduction")
    assert config.recipe.advantage.scale == "std" and config.recipe.loss.kl_weight == 1e-3
    assert config.domain.verifier.name == "clock" and config.domain.data == ("clock",)
