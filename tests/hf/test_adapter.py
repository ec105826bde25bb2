"""Adapters as PEFT reads and writes them: the same logits in both libraries, in both directions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from nrt_jax import checkpoints, hf
from nrt_jax.errors import UserError
from nrt_jax.models import Frozen, LoRAConfig, Model, lora
from tests.hf import tiny

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(0, 13, (2, 9))
CONFIGS = {
    "llama": tiny.LLAMA,
    "tied": dataclasses.replace(tiny.LLAMA, tie_embeddings=True),
    "mistral": dataclasses.replace(tiny.LLAMA, model_type="mistral", sliding_window=4),
}


@pytest.fixture(params=CONFIGS)
def base(request, tmp_path):
    """A base model's folder, as AutoModelForCausalLM and we load it."""
    config = CONFIGS[request.param]
    hf.save(tmp_path / "base", Model(config), small(tiny.params(config)), tiny.tokenizer())
    return tmp_path / "base"


def small(params):
    return jax.tree.map(lambda x: 0.5 * x, params)


def their_base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def their_logits(model):
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def trained(model, params, row_ids):
    trainable, frozen = lora.split(model, params, row_ids, jax.random.key(0))
    leaves, tree = jax.tree.flatten(trainable)
    noisy = [x + 0.2 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, noisy), frozen


@pytest.mark.parametrize("added", ["", "<|response_start|>"])
@pytest.mark.parametrize("targets", [lora.PROJECTIONS, ("q", "down")])
def test_peft_loads_our_adapter_and_gives_our_logits(base, tmp_path, added, targets):
    model, params, tokenizer = hf.load(base)
    known = len(tokenizer)
    # Thirteen rows and nine words: pretend that there are no spare rows, as in published models.
    full = [f"<{i}>" for i in range(4)]
    model, params, tokenizer = hf.add_tokens(model, params, tokenizer, [*full, added] if added else full)
    row_ids = tuple(range(known, len(tokenizer)))
    model = dataclasses.replace(model, lora=LoRAConfig(rank=3, alpha=5.0, targets=targets))
    trainable, frozen = trained(model, params, list(row_ids))
    adapter = hf.Adapter(model.lora, str(base), row_ids)
    hf.save_adapter(tmp_path / "adapter", adapter, model.config, trainable, tokenizer)

    theirs = their_base(base)
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "adapter")
    assert len(theirs_tokenizer) == len(tokenizer)
    if len(theirs_tokenizer) > theirs.config.vocab_size:
        theirs.resize_token_embeddings(len(theirs_tokenizer), mean_resizing=False)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ours = model.logits(lora.combine(trainable, frozen), TOKENS)
    assert ours.std() > 0.5
    np.testing.assert_allclose(ours, their_logits(theirs), rtol=0, atol=1e-4)

    merged, merged_params, _ = checkpoints.load(tmp_path / "adapter")
    assert merged == Model(model.config)
    np.testing.assert_allclose(merged.logits(merged_params, TOKENS), ours, rtol=0, atol=1e-4)


def test_we_load_what_peft_made(base, tmp_path):
    theirs = their_base(base)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj", "up_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    theirs = peft.get_peft_model(theirs, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    model, params, tokenizer = checkpoints.load(tmp_path / "adapter")  # PEFT writes no tokenizer: the base's is taken
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert np.abs(their_logits(theirs) - their_logits(their_base(base))).max() > 0.01
    np.testing.assert_allclose(model.logits(params, TOKENS), their_logits(theirs), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type: LOHA is not supported; expected LORA"),
        ({"use_dora": True}, "use_dora: True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa is not supported; expected True or gaussian"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"a_field_of_the_future": "x"}, "a_field_of_the_future: x is not supported; expected none"),
        ({"trainable_token_indices": {"embed_tokens": ["x"]}}, "trainable_token_indices"),
        (
            {"trainable_token_indices": {"embed_tokens": 5}},
            "trainable_token_indices: .*expected the same list of different ids",
        ),
        ({"trainable_token_indices": {"embed_tokens": [13]}}, "13 is beyond the 13 rows"),
        ({"use_rslora": True}, "use_rslora: True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "target_modules.*expected a list of q_proj, k_proj"),
        ({"target_modules": [["q_proj"]]}, "target_modules.*expected a list of q_proj, k_proj"),
        ({"target_modules": "all-linear"}, "target_modules: all-linear"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 0}, "r, lora_alpha: found 0, 4.0"),
        ({"r": 3}, r"lora_A.*found shape \(2, 8\).*\(3, 8\)"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path: found None"),
        ({"base_model_name_or_path": "/no/where"}, r"adapter_config\.json: its base model cannot be found: /no/where"),
    ],
)
def test_an_adapter_that_does_something_else_is_refused_by_the_fields_name(tmp_path, changes, message):
    hf.save(tmp_path / "base", Model(tiny.LLAMA), tiny.params(tiny.LLAMA), tiny.tokenizer())
    model = Model(tiny.LLAMA, LoRAConfig(rank=2, alpha=4.0))
    trainable, _ = trained(model, tiny.params(tiny.LLAMA), [])
    adapter = hf.Adapter(model.lora, str(tmp_path / "base"))
    hf.save_adapter(tmp_path / "a", adapter, model.config, trainable, tiny.tokenizer())
    checkpoints.load(tmp_path / "a")
    path = tmp_path / "a" / hf.ADAPTER_CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        checkpoints.load(tmp_path / "a")
    assert "\n" not in str(error.value)


def test_what_is_written_is_read_back_bit_for_bit(tmp_path):
    model = Model(tiny.LLAMA, LoRAConfig(rank=2, alpha=4.0, targets=("q", "k", "down")))
    trainable, _ = trained(model, tiny.params(tiny.LLAMA), [9, 11])
    adapter = hf.Adapter(model.lora, "some/base", (9, 11))
    hf.save_adapter(tmp_path / "a", adapter, model.config, trainable, tiny.tokenizer())
    assert hf.read_adapter_config(tmp_path / "a") == adapter
    read = hf.read_adapter_params(tmp_path / "a", adapter, model.config)
    jax.tree.map(np.testing.assert_array_equal, read, trainable)
    assert isinstance(lora.combine(read, Frozen(params=tiny.params(tiny.LLAMA), row_ids=np.array([9, 11]))), dict)
