"""Write a CTC token set as the tokenizer files of transformers.

With these files ``pipeline("automatic-speech-recognition", model=folder)`` prints the same text as greedy decoding
here. Symbol 0 is the blank (transformers calls it padding), ``|`` or ``▁`` is the space between words, and U+FFFD
stands for text that the set cannot represent.

characters   vocab.json for Wav2Vec2CTCTokenizer, which also gives times of characters and words
pieces       tokenizer.json for PreTrainedTokenizerFast: the same pieces and scores, so that text gives the same ids

Source: transformers/models/wav2vec2/tokenization_wav2vec2.py and convert_slow_tokenizer.py, 5.x.
"""

import json
from typing import Any

from lowrank_speech.lang.normalise import UNKNOWN
from lowrank_speech.lang.tokens import BLANK, BOUNDARY, UNK, CharTokens, PieceTokens

SPACE = "▁"  # sentencepiece's


def tokenizer_files(tokens: CharTokens | PieceTokens) -> dict[str, str]:
    """File name -> text, for a CTC model whose outputs are ``tokens``."""
    if isinstance(tokens, PieceTokens):
        unknown, shown = UNK, {"tokenizer_class": "PreTrainedTokenizerFast"}
        files = {"tokenizer.json": _pieces(tokens)}
    else:
        # Wav2Vec2CTCTokenizer prints the name of the unknown symbol.
        unknown, shown = UNKNOWN, {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": BOUNDARY,
            "replace_word_delimiter_char": " ",
            "do_lower_case": False,
        }  # fmt: skip
        files = {"vocab.json": _json({unknown if s == UNK else s: i for i, s in enumerate(tokens.symbols)})}
    special = {"pad_token": BLANK, "unk_token": unknown, "bos_token": None, "eos_token": None}
    files["tokenizer_config.json"] = _json({**shown, **special, "clean_up_tokenization_spaces": False})
    files["special_tokens_map.json"] = _json({name: token for name, token in special.items() if token is not None})
    return files


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _pieces(tokens: PieceTokens) -> str:
    """Contents of tokenizer.json."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    scored = tokens.scored
    scores = [score for piece, score in scored if score and not piece.startswith("<")]
    if scores == [-float(i + 1) for i in range(len(scores))]:  # BPE: sentencepiece's scores are the order of the merges
        from transformers.convert_slow_tokenizer import generate_merges

        ids = {piece: i for i, (piece, _) in enumerate(scored)}
        merges = generate_merges(ids, dict(scored))
        model = models.BPE(ids, merges, unk_token=UNK, fuse_unk=True, byte_fallback=tokens.falls_back)
    else:
        model = models.Unigram(scored, unk_id=tokens.unk, byte_fallback=tokens.falls_back)
    result = Tokenizer(model)
    result.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=True)
    result.decoder = decoders.Sequence(
        [
            decoders.CTC(pad_token=BLANK, word_delimiter_token=SPACE, cleanup=False),
            decoders.Replace(UNK, UNKNOWN),
            *([decoders.ByteFallback()] if tokens.falls_back else []),
            decoders.Fuse(),
            decoders.Replace(SPACE, " "),
            decoders.Replace(Regex(" +"), " "),
            decoders.Strip(" ", 1, 1),
        ]
    )
    return result.to_str(pretty=True) + "\n"
