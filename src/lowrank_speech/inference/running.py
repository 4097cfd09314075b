"""Run a recogniser over recordings: short ones together in batches by duration, long ones each on its own.

The batch of a recording does not change its result (up to the rounding of sums). Recordings are read as they are
needed, so their number does not matter for memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.inference.sound import RATE

K = TypeVar("K")
NO_ROOM = "the GPU has too little memory for it; use --device cpu or --dtype bf16"
ROWS = 32
"""Recordings in a batch, at most."""
AHEAD = 4
"""Batches whose recordings are sorted by duration together."""
LEAST = 0.1
"""Seconds below which a result is doubtful: Whisper, which fills its window with silence, writes a word for a click.
OpenAI's API refuses such recordings."""


@dataclass(frozen=True)
class Outcome(Generic[K]):
    """``result``: a ``Transcript`` or ``Identification``, or the error that kept it from being made."""

    key: K
    result: Any


@dataclass
class _Short(Generic[K]):
    key: K
    sound: Any
    input: Tensor
    seconds: float


def run(
    sounds: Iterable[tuple[K, Callable[[], Any]]],
    recogniser: Any,
    batch_seconds: float,
    progress: Callable[[K, float, float], None] = lambda key, done, total: None,
) -> Iterator[Outcome[K]]:
    """The outcome of each of ``sounds``, as they are finished: pairs of a key and a function that opens the sound.

    ``recogniser``: has ``longest``, ``input``, ``short`` and ``long`` (``ctc``, ``whisper``, ``languages``).
    ``progress(key, done, total)``: seconds of a long recording.
    """
    waiting: list[_Short[K]] = []
    for key, opened in sounds:
        try:
            sound = opened()
            samples = _short(sound, recogniser.longest)
            if samples is not None:
                waiting.append(_Short(key, sound, recogniser.input(samples), len(samples) / RATE))
            else:
                # What was read before need not wait for a long recording.
                yield from _batches(waiting, recogniser, batch_seconds)
                waiting = []
                with torch.inference_mode():
                    done = recogniser.long(sound, lambda *seconds, key=key: progress(key, *seconds))
                yield Outcome(key, _noted(done, sound))
        except UserError as error:
            yield Outcome(key, _named(error, key))
        except torch.OutOfMemoryError:
            yield Outcome(key, _named(UserError(NO_ROOM), key))
        if sum(one.seconds for one in waiting) >= AHEAD * batch_seconds or len(waiting) >= AHEAD * ROWS:
            yield from _batches(waiting, recogniser, batch_seconds)
            waiting = []
    yield from _batches(waiting, recogniser, batch_seconds)


def _short(sound: Any, longest: float) -> Tensor | None:
    """All samples of ``sound``; None: it is longer than ``longest`` seconds."""
    if sound.seconds is not None and sound.seconds > longest + 1:
        return None
    parts, have = [], 0
    for block in sound.blocks():
        parts.append(block)
        have += len(block)
        if have > longest * RATE:
            return None
    return torch.cat(parts)


def _batches(waiting: Sequence[_Short[K]], recogniser: Any, batch_seconds: float) -> Iterator[Outcome[K]]:
    batch: list[_Short[K]] = []
    for one in sorted(waiting, key=lambda one: -one.seconds):
        if batch and (batch[0].seconds * (len(batch) + 1) > batch_seconds or len(batch) == ROWS):
            yield from _batch(batch, recogniser)
            batch = []
        batch.append(one)
    if batch:
        yield from _batch(batch, recogniser)


def _batch(batch: Sequence[_Short[K]], recogniser: Any) -> Iterator[Outcome[K]]:
    try:
        with torch.inference_mode():
            found = recogniser.short([one.input for one in batch], [one.seconds for one in batch])
    except torch.OutOfMemoryError:
        if len(batch) > 1:
            for one in batch:
                yield from _batch([one], recogniser)
            return
        found = [UserError(NO_ROOM)]
    for one, result in zip(batch, found, strict=True):
        yield Outcome(one.key, _named(result, one.key) if isinstance(result, UserError) else _noted(result, one.sound))


def _noted(result: Any, sound: Any) -> Any:
    """``result`` with the name of the recording, and what is wrong with the file."""
    notes = [*sound.notes, *result.notes]
    if result.seconds < LEAST:
        notes.append(f"it has only {result.seconds:.3f} s, too little for a word; the result may be made up")
    return replace(result, audio=sound.name, notes=tuple(notes))


def _named(error: UserError, key: Any) -> UserError:
    """``error`` with the name of the recording."""
    name = getattr(key, "name", None) or str(key)
    said = str(error)
    return error if said.startswith(name) else UserError(f"{name}: {said}")
