"""Read the special tokens of a published Whisper from its tokenizer, and complete a checkpoint's generation settings.

Fine-tuned checkpoints come with generation settings of all ages: without languages (2022), without the file, or with
``forced_decoder_ids`` that make a multilingual model always write one language. Only the tokenizer is always complete,
so languages, tasks and other settings are derived from it.

Source: transformers/models/whisper (tokenization, generation) 5.x; openai/whisper, tokenizer.py.
"""

import json
import logging
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.files import KEY

log = logging.getLogger(__name__)

SOT, TRANSCRIBE, NO_TIMESTAMPS = "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"
SILENT = (SOT, "<|translate|>", TRANSCRIBE, "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|nocaptions|>")
LANGUAGE = re.compile(r"<\|([a-z]{2,3}(?:-[A-Za-z0-9]+)*)\|>")
# Facts of the tokenizer, which override the checkpoint's files.
FACTS = ("is_multilingual", "lang_to_id", "task_to_id", "no_timestamps_token_id", "decoder_start_token_id")
ENGLISH_EOT = 50256  # in GPT-2's English vocabulary; the multilingual one has one more token before it
TIMESTAMPS = 1501  # <|0.00|> to <|30.00|>, which some tokenizers leave out
PADDING = 128  # the number of embeddings may be padded to a multiple of a number up to this
MULTIPLE = 8  # and of no smaller number, so one token more is another tokenizer (that of large-v3 for large-v2's)
FILES = "tokenizer.json, or vocab.json and merges.txt"


@dataclass(frozen=True)
class Vocabulary:
    """Ids of a tokenizer's special tokens. ``languages``: code -> id; empty for English-only models."""

    size: int
    eot: int
    sot: int
    no_timestamps: int
    languages: dict[str, int]
    tasks: dict[str, int]
    previous: int | None
    silent: tuple[int, ...]  # special tokens that never occur in a transcript

    @classmethod
    def of(cls, tokenizer: Any, where: str | Path) -> "Vocabulary":
        """The special tokens of ``tokenizer``. Raises UserError, with the folder ``where``, if it is not Whisper's."""
        ids = tokenizer.get_vocab()
        missing = [token for token in (SOT, NO_TIMESTAMPS) if token not in ids]
        if missing:
            raise UserError(
                f"{where}: its tokenizer does not know {' and '.join(missing)}, so it is not Whisper's; use the "
                f"tokenizer files ({FILES}) of the model that this one was fine-tuned from"
            )
        eot = tokenizer.eos_token_id
        languages = {found[1]: i for token, i in ids.items() if (found := LANGUAGE.fullmatch(token))}
        # English-only tokenizers list the languages too, but their models were not trained with them.
        english = eot == ENGLISH_EOT or TRANSCRIBE not in ids
        return cls(
            size=max(ids.values()) + 1,
            eot=eot,
            sot=ids[SOT],
            no_timestamps=ids[NO_TIMESTAMPS],
            languages={} if english else dict(sorted(languages.items(), key=lambda pair: pair[1])),
            tasks={} if english else {t: ids[f"<|{t}|>"] for t in ("transcribe", "translate") if f"<|{t}|>" in ids},
            previous=ids.get("<|startofprev|>"),
            silent=tuple(ids[token] for token in SILENT if token in ids),
        )


def open_tokenizer(folder: str | Path) -> Any:
    """Transformers' WhisperTokenizer from the files in ``folder``. Raises UserError if they are missing or broken."""
    from transformers import WhisperTokenizer

    folder = Path(folder)
    # Without files, transformers returns an empty tokenizer instead of an error.
    if not (_has(folder, "tokenizer.json") or _has(folder, "vocab.json", "merges.txt")):
        above = folder.resolve().parent
        found = _has(above, "tokenizer.json") or _has(above, "vocab.json", "merges.txt")
        where = f"they are in {above}" if found else "use those of the model that it was fine-tuned from"
        raise UserError(
            f"{folder}: Whisper's tokenizer files ({FILES}) are missing, as in a Trainer's checkpoint-N; {where}: copy "
            f"them into the folder"
        )
    try:
        return WhisperTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise UserError(f"{folder}: Whisper's tokenizer files are broken ({error}); use the published ones") from error


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def checked(folder: str | Path, vocab_size: int) -> Vocabulary:
    """The special tokens of the model in ``folder``. Raises UserError if its tokenizer does not fit ``vocab_size``."""
    found = Vocabulary.of(open_tokenizer(folder), folder)
    exact = vocab_size in (found.size, found.size + TIMESTAMPS)
    padded = vocab_size % MULTIPLE == 0 and found.size <= vocab_size <= found.size + TIMESTAMPS + PADDING
    if not (exact or padded):
        raise UserError(
            f"{folder}: its tokenizer has {found.size} tokens, but config.json says vocab_size: {vocab_size}; use the "
            f"tokenizer files of the model that this one was fine-tuned from"
        )
    return found


def complete(model: Any, folder: Path) -> None:
    """Complete the generation settings of a published Whisper (in place) from its tokenizer, and log the changes.

    Drops ``forced_decoder_ids``, which fix a language, because the decoder sets the language.
    """
    from transformers.models.whisper.configuration_whisper import NON_SPEECH_TOKENS, NON_SPEECH_TOKENS_MULTI

    config, generation, tokens = model.config, model.hf.generation_config, checked(folder, model.config.vocab_size)
    said = _said(folder)
    for holder in (config, generation):
        forced = vars(holder).pop("forced_decoder_ids", None)
        if forced is not None:
            log.warning("%s: dropping forced_decoder_ids %s", folder, forced)
    if vars(generation).get("_from_model_config"):  # transformers would derive them again from config.json
        generation._from_model_config = False
    wanted: dict[str, Any] = {
        "is_multilingual": bool(tokens.languages),
        "no_timestamps_token_id": tokens.no_timestamps,
        "eos_token_id": tokens.eot,
        "pad_token_id": tokens.eot,
        "bos_token_id": tokens.eot,
        "decoder_start_token_id": tokens.sot,
        "prev_sot_token_id": tokens.previous,
        "max_length": config.max_target_positions,
        "max_initial_timestamp_index": 50,
        "return_timestamps": False,
    }
    # Only for published vocabularies: in others these ids mean other tokens.
    speechless = {ENGLISH_EOT: NON_SPEECH_TOKENS, ENGLISH_EOT + 1: NON_SPEECH_TOKENS_MULTI}.get(tokens.eot)
    wanted["suppress_tokens"] = sorted({*speechless, *tokens.silent}) if speechless else []
    wanted["begin_suppress_tokens"] = [220, tokens.eot] if speechless else []
    if tokens.languages:
        wanted["lang_to_id"] = {f"<|{language}|>": i for language, i in tokens.languages.items()}
        wanted["task_to_id"] = dict(tokens.tasks)
    changed = []
    for name, value in wanted.items():
        # The author of the file may have chosen the other values.
        free = name in FACTS or (name not in said and value is not None)
        if free and getattr(generation, name, None) != value:
            setattr(generation, name, value)
            changed.append(name)
    if changed:
        log.info("%s: generation settings completed from the tokenizer: %s", folder, ", ".join(changed))


class _Everything:
    def __contains__(self, name: str) -> bool:
        return True


def _said(folder: Path) -> Container[str]:
    """Keys that the checkpoint's generation settings set, even to null; those of 2022 are in config.json."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if KEY in config:  # the import has completed them, and does not write null
        return _Everything()
    file = folder / "generation_config.json"
    if file.is_file():
        return set(json.loads(file.read_text(encoding="utf-8")))
    # In config.json, transformers writes null or an English model's default for missing values.
    return {name for name, value in config.items() if value is not None and value != [220, ENGLISH_EOT]}
