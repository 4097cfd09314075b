"""Search of utterances with a Whisper as the decoders do it, for tests of its parts."""

from dataclasses import dataclass

from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.decoding.whisper.generate import Options
from lowrank_speech.decoding.whisper.search import Guards, Search, Window


@dataclass(frozen=True)
class Row:
    """What was found for an utterance: ``ids`` without time stamps."""

    ids: list[int]
    score: float
    language: str | None
    stopped: str | None


def codes_of(model, tokens, **changed):
    said = model.hf.generation_config
    given = {
        "sot": tokens.sot,
        "eot": tokens.eot,
        "no_timestamps": said.no_timestamps_token_id,
        "languages": dict(tokens.language_ids),
        "tasks": dict(getattr(said, "task_to_id", None) or {}),
        "previous": None,
        "no_speech": None,
        "first_time": said.no_timestamps_token_id + 1,
        "times": model.config.vocab_size - said.no_timestamps_token_id - 1,
    }
    return Codes(**given | changed)


def search_of(model, tokens, options=None, guards=None, probability=False, **changed):
    codes = codes_of(model, tokens, **changed)
    guards = guards or Guards((0.0,), None, None, None, 1, lambda ids: tokens.decode(codes.written(ids)))
    return Search(model, codes, options or Options(), guards, probability)


def generate(model, features, lengths, tokens, languages, max_new_tokens=None, bounds=None, loops=False, **options):
    """A row for each utterance; a language that is None is detected."""
    search = search_of(model, tokens, Options(loops=loops, **options))
    states = search.encode(model.pad_mel(features, lengths))
    given = list(languages or [None] * len(states))
    unknown = [i for i, language in enumerate(given) if language is None]
    told = list(given)
    if unknown and tokens.language_ids:
        for i, language in zip(unknown, search.detect(states[unknown], None), strict=True):
            told[i] = language
    room = model.config.max_target_positions - 4
    limit = min(max_new_tokens or room, room)
    windows = []
    for i, language in enumerate(told):
        prompt = tuple(search.codes.start(language, "transcribe", False))
        windows.append(Window(prompt, 0, min(limit, (bounds or [limit] * len(told))[i]), str(i)))
    return [
        Row(search.codes.written(found.best.tokens), found.best.score, now if was is None else None, found.best.stopped)
        for found, now, was in zip(search(states, windows), told, given, strict=True)
    ]
