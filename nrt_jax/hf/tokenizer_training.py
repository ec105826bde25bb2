"""Train the small tokenizer of the embedded model: byte-level BPE, as Llama 3 has it, over a task's texts."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
#: The release's single delimiter between trace and answer, and the paper's tags.
TRACE_TOKENS = ("<|response_start|>", "<think>", "</think>")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that never fails: frequent words become one token, any other text falls back to bytes.

    Args:
        texts: Segments (questions, traces, answers) one by one, as samples are tokenized segment by segment: a
            word that opens a segment has no space before it and needs its own token.
        vocab_size: Upper limit, the 256 bytes and the special tokens included. Merging stops earlier when
            every word of `texts` is one token.

    Returns:
        A tokenizer that adds no special tokens by itself.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *TRACE_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # sorted: the order decides the ids
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(TRACE_TOKENS),
        clean_up_tokenization_spaces=False,
    )
