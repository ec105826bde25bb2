"""Small tokenizers in the layouts that Llama 2 and Mistral 7B were published in, beside a byte-level one."""

import functools
import json

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.fixtures_run import examples, tokenizer

#: Name of a layout -> where it puts a space before text: `first` once, the others after each special token too.
LAYOUTS = ("byte-level", "first", "always", "legacy")
BYTES = [f"<0x{i:02X}>" for i in range(256)]


@functools.cache
def of_layout(layout: str):
    """BPE of that layout with the special tokens `<bos>`, `<eos>` and `<|response_start|>`."""
    if layout == "byte-level":
        return tokenizer()
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if layout == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=layout, split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    texts = [text for e in examples(24) for text in (e.question, e.answer, e.trace)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<bos>", "<eos>", *BYTES], show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    saved = json.loads(core.to_str())
    saved["added_tokens"] = [token for token in saved["added_tokens"] if token["content"] not in BYTES]
    built = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(saved)),
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    built.add_tokens([AddedToken("<|response_start|>", special=True, normalized=False)], special_tokens=True)
    return built
