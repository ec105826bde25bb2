import dataclasses
import json

import numpy as np
import pytest

from nrt_jax import hf
from nrt_jax.errors import UserError
from nrt_jax.hf.tokenizer import check_vocabulary
from nrt_jax.models import Model
from tests.hf import tiny

DELIMITER = "<|response_start|>"
EOS = tiny.WORDS.index("</s>")


def model_with(**changes):
    model = Model(dataclasses.replace(tiny.LLAMA, **changes))
    return model, tiny.params(model.config)


def test_token_id_is_for_texts_that_are_one_token():
    tokenizer = tiny.tokenizer()
    assert hf.token_id(tokenizer, "three") == tiny.WORDS.index("three")
    assert hf.token_id(tokenizer, "<unk>") == tiny.WORDS.index("<unk>")
    for text in ("one two", "", DELIMITER):
        with pytest.raises(UserError, match="expected exactly one token"):
            hf.token_id(tokenizer, text)


@pytest.mark.parametrize("tied", [False, True])
def test_added_token_takes_a_spare_row_and_copies_the_row_of_eos(tied):
    model, params = model_with(tie_embeddings=tied)
    tokenizer = tiny.tokenizer()
    grown_model, grown, grown_tokenizer = hf.add_tokens(model, params, tokenizer, [DELIMITER])
    new = hf.token_id(grown_tokenizer, DELIMITER)
    assert new == len(tiny.WORDS) == len(tokenizer)  # the caller's tokenizer has not changed
    assert grown_model == model
    for name in {"embedding", "head"} & params.keys():
        np.testing.assert_array_equal(grown[name][new], params[name][EOS])
        np.testing.assert_array_equal(np.delete(grown[name], new, 0), np.delete(params[name], new, 0))
    assert ("head" in grown) is not tied


def test_embedding_grows_only_where_no_row_is_free():
    model, params = model_with(vocab_size=len(tiny.WORDS))
    grown_model, grown, tokenizer = hf.add_tokens(model, params, tiny.tokenizer(), ["<think>", "</think>", "one"])
    assert len(tokenizer) == grown_model.config.vocab_size == len(tiny.WORDS) + 2
    for name in ("embedding", "head"):
        assert grown[name].shape == (len(tiny.WORDS) + 2, 8)
        np.testing.assert_array_equal(grown[name][:-2], params[name])
        np.testing.assert_array_equal(grown[name][-2:], [params[name][EOS]] * 2)
    assert grown["layers"] is params["layers"]


def test_adding_known_tokens_changes_nothing():
    model, params = model_with()
    once = hf.add_tokens(model, params, tiny.tokenizer(), [DELIMITER])
    twice = hf.add_tokens(*once, [DELIMITER, "one"])
    assert all(a is b for a, b in zip(once, twice, strict=True))


def test_added_token_is_never_split_and_is_dropped_from_clean_text():
    tokenizer = hf.add_tokens(*model_with(), tiny.tokenizer(), [DELIMITER])[2]
    ids = tokenizer.encode(f"one{DELIMITER}two", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["one", DELIMITER, "two"]
    assert DELIMITER not in tokenizer.decode(ids, skip_special_tokens=True)


def test_saved_tokenizer_is_the_same_and_is_spelt_as_transformers_4_reads_it(tmp_path):
    tokenizer = hf.add_tokens(*model_with(), tiny.tokenizer(), [DELIMITER])[2]
    tokenizer.add_special_tokens({"additional_special_tokens": ["three"]})
    for _ in range(2):  # once as made, once as loaded
        hf.save_tokenizer(tmp_path, tokenizer)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config["additional_special_tokens"] == ["three"]
        assert not config.keys() & {"backend", "extra_special_tokens", "is_local"}
        loaded = hf.load_tokenizer(tmp_path)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.all_special_tokens == tokenizer.all_special_tokens
        text = f"one {DELIMITER} two"
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text), skip_special_tokens=True).split() == ["one", "two"]
        tokenizer = loaded


def test_tokens_cannot_be_added_without_eos():
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        hf.add_tokens(*model_with(), tokenizer, [DELIMITER])


def test_a_token_that_would_take_the_id_of_another_is_not_added(tmp_path):
    """The library numbers an added token by the count of those before it, which gaps in the ids make too small."""
    tiny.tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    del content["model"]["vocab"]["two"], content["model"]["vocab"]["three"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"gaps in its ids.*id 7, which another has"):
        hf.add_tokens(*model_with(), hf.load_tokenizer(tmp_path), [DELIMITER])


def test_tokenizer_that_exceeds_the_embedding_is_refused():
    check_vocabulary(tiny.tokenizer(), dataclasses.replace(tiny.LLAMA, vocab_size=9))
    with pytest.raises(UserError, match=r"vocab_size.*8 rows.*largest id is 8"):
        check_vocabulary(tiny.tokenizer(), dataclasses.replace(tiny.LLAMA, vocab_size=8))


def test_missing_or_broken_tokenizer_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        hf.load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer found"):
        hf.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot load its tokenizer") as error:
        hf.load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
