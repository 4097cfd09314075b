"""Split the tokens of a window at the time stamps that Whisper predicted.

Whisper writes ``<|0.00|> text <|2.40|><|2.40|> text <|5.00|>``. Two stamps in a row end a segment and begin the next
one. A text after the last pair may have been cut off by the window's end, so the next window begins at that pair. If
only one stamp ends the tokens, no speech follows it.

Source: openai/whisper, transcribe.py; transformers, generation_whisper.py (_retrieve_segment).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_speech.decoding.whisper.codes import STEP, Codes


@dataclass(frozen=True)
class Segment:
    """``tokens`` with their time stamps; ``start`` and ``end`` in seconds from the start of the window."""

    tokens: list[int]
    start: float
    end: float


def split(tokens: Sequence[int], codes: Codes, seconds: float) -> tuple[list[Segment], float]:
    """The segments of a window with ``seconds`` of speech, and how many seconds of it they cover."""
    tokens = list(tokens)
    stamps = [codes.is_time(token) for token in tokens]

    def time(token: int) -> float:
        return min((token - codes.first_time) * STEP, seconds)

    ends = [i + 1 for i in range(len(tokens) - 1) if stamps[i] and stamps[i + 1]]
    if not ends:
        # The whole window is a segment, which ends at its last time stamp.
        times = [time(token) for token, stamp in zip(tokens, stamps, strict=True) if stamp]
        end = times[-1] if times and times[-1] > 0 else seconds
        start = times[0] if len(times) > 1 or (times and stamps[0]) else 0.0
        return [Segment(tokens, min(start, end), end)], seconds
    closed = stamps[-2:] == [False, True]
    if closed:
        ends.append(len(tokens))
    found, begin = [], 0
    for end in ends:
        part = tokens[begin:end]
        found.append(Segment(part, time(part[0]), time(part[-1])))
        begin = end
    return found, seconds if closed else found[-1].end
