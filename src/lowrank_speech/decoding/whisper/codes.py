"""Special tokens of a Whisper, and the prompts and texts that are made with them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.whisper_vocabulary import TIMESTAMPS, open_tokenizer

NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
STEP = 0.02
"""Seconds from one time stamp to the next, and from one encoder frame to the next."""


@dataclass(frozen=True)
class Codes:
    """Ids of special tokens. ``None`` and empty: the model does not have them.

    ``languages``: code -> id; empty for English-only models. ``tasks``: name -> id. ``previous``: before a text that
    precedes the transcript. ``first_time``: id of <|0.00|>; ``times``: number of time stamps.
    """

    sot: int
    eot: int
    no_timestamps: int
    languages: dict[str, int]
    tasks: dict[str, int]
    previous: int | None
    no_speech: int | None
    first_time: int
    times: int

    @classmethod
    def of(cls, model: Any, tokens: Any, folder: str | Path, own: bool) -> "Codes":
        """The codes of ``model`` in ``folder`` with decoder ``tokens``. ``own``: these are Whisper's own, from the
        folder, instead of those of a base from scratch."""
        said = model.hf.generation_config
        last = said.no_timestamps_token_id
        # Whisper's last token before <|notimestamps|>; a base from scratch has another one there.
        silent = own and open_tokenizer(folder).convert_ids_to_tokens(last - 1) in NO_SPEECH
        return cls(
            sot=tokens.sot,
            eot=tokens.eot,
            no_timestamps=last,
            languages=dict(tokens.language_ids),
            tasks=dict(getattr(said, "task_to_id", None) or {}) if tokens.language_ids else {},
            previous=getattr(said, "prev_sot_token_id", None) if own else None,
            no_speech=last - 1 if silent else None,
            first_time=last + 1,
            times=min(model.config.vocab_size - last - 1, TIMESTAMPS),
        )

    def start(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        """The tokens before a transcript in ``language``."""
        start = [self.sot]
        if self.languages:
            start += [self.languages[language], self.tasks[task]]
        return start if timestamps else [*start, self.no_timestamps]

    def is_time(self, token: int) -> bool:
        return self.first_time <= token < self.first_time + self.times

    def written(self, tokens: Iterable[int]) -> list[int]:
        """``tokens`` without time stamps, and without tokens of the prompt that the model repeats."""
        prompt = {self.sot, *self.languages.values()}
        return [token for token in tokens if token not in prompt and not self.is_time(token)]

    # -- what a decoder asks for; UserError if the model cannot do it

    def allowed(self, languages: Sequence[str] | None, where: Path) -> list[str] | None:
        """The languages of ``languages`` that the model knows, to detect one of them; None: all."""
        from lowrank_speech.lang.codes import nearest_language

        if languages is None:
            return None
        if not self.languages:
            raise UserError(
                f"decoder.languages is {', '.join(languages)}, but {where} is an English-only Whisper, which does not "
                f"detect languages; remove the key"
            )
        found = [nearest_language(language, self.languages) for language in languages]
        if not any(found):
            raise UserError(
                f"decoder.languages: the model in {where} knows none of {', '.join(languages)}; expected some of: "
                f"{', '.join(sorted(self.languages))}"
            )
        return list(dict.fromkeys(language for language in found if language is not None))

    def require_task(self, task: str, where: Path) -> None:
        if task == "transcribe" or task in self.tasks:
            return
        why = "an English-only Whisper" if not self.languages else "a Whisper without a token for it"
        raise UserError(f"decoder.task is {task}, but {where} is {why}; use task: transcribe")

    def require_times(self, what: str, where: Path) -> None:
        if self.times == 0:
            raise UserError(
                f"decoder.{what} needs time stamps, but the vocabulary of {where} has none; remove the key, or decode "
                f"long cuts with long: chunks"
            )

    def require_no_speech(self, what: str, where: Path) -> None:
        if self.no_speech is None:
            raise UserError(f"decoder.{what}: the vocabulary of {where} has no token {NO_SPEECH[0]}; remove the key")

    def earlier(self, text: str | None, room: int, where: Path) -> list[int]:
        """The tokens of the prompt ``text``, at most ``room``, as transformers' ``get_prompt_ids`` makes them."""
        if text is None:
            return []
        if self.previous is None:
            raise UserError(f"decoder.prompt: the vocabulary of {where} has no <|startofprev|>; remove the key")
        ids = open_tokenizer(where)(" " + text.strip(), add_special_tokens=False)["input_ids"]
        special = [i for i in ids if i >= self.eot]
        if special:
            raise UserError(f"decoder.prompt contains the special token {open_tokenizer(where).decode(special[:1])}")
        if len(ids) > room:
            raise UserError(f"decoder.prompt has {len(ids)} tokens, but {where} takes at most {room}; shorten it")
        return ids
