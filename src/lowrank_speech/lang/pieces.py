"""Train a sentencepiece model on normalised transcripts. Equal sentences and options give equal bytes.

Source: Kudo and Richardson 2018 (sentencepiece), Kudo 2018 (unigram), Sennrich et al. 2016 (BPE).
"""

import io
import re
from collections.abc import Iterable
from typing import Literal

from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import UNKNOWN
from lowrank_speech.lang.tokens import BLANK, UNK


def train_pieces(
    sentences: Iterable[str],
    vocab_size: int,
    model_type: Literal["unigram", "bpe"] = "unigram",
    byte_fallback: bool = False,
    seed: int = 1,
) -> bytes:
    """Bytes of a sentencepiece model with ``vocab_size`` pieces, including <blk> (0) and <unk> (1).

    ``sentences`` are normalised; repeated sentences count once. Every character becomes a piece. With ``byte_fallback``
    256 of the pieces are bytes, and no character is unknown. UserError: too many or too few pieces for these sentences;
    the message gives the limit.
    """
    import sentencepiece

    sentences = sorted(set(sentences))
    sentencepiece.set_random_generator_seed(seed)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=1.0,
            normalization_rule_name="identity",
            # CTC and seq2seq share one table. The blank is a control piece, so no text can produce it.
            pad_id=0,
            pad_piece=BLANK,
            unk_id=1,
            unk_piece=UNK,
            unk_surface=UNKNOWN,
            bos_id=-1,
            eos_id=-1,
            hard_vocab_limit=True,
            num_threads=1,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            # sentencepiece silently drops longer sentences.
            max_sentence_length=max((len(sentence.encode()) for sentence in sentences), default=0) + 1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_explain(str(error), vocab_size, len(sentences))) from error
    return written.getvalue()


def _explain(message: str, vocab_size: int, sentences: int) -> str:
    found = f"vocab_size: {vocab_size} is too"
    if limit := re.search(r"set it to a value <= (\d+)", message):
        return f"{found} large for {sentences} different sentences; give at most {limit[1]}"
    if limit := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return (
            f"{found} small: {BLANK}, {UNK}, the bytes (with byte_fallback) and the characters of the {sentences} "
            f"different sentences need {limit[1]} pieces; raise it, or raise `min_count` to turn rare characters into "
            f"{UNK}"
        )
    return f"sentencepiece cannot train {vocab_size} pieces on {sentences} different sentences: {message}"
