"""Times of words, from the tokens of a path's frames."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from lowrank_speech.decoding.base import Word

BLANK = 0


def timed_words(
    labels: Sequence[int],
    words: Sequence[str],
    pronunciations: Mapping[str, Sequence[tuple[int, ...]]],
    boundary: int | None,
    log_probs: Any,
    seconds: float,
) -> tuple[Word, ...]:
    """The words of a path, from the first frame of their first token to the last frame of their last one.

    ``labels``: the token of each frame; ``log_probs``: (F, V), for the scores, which are sums over a word's frames;
    ``seconds``: length of a frame.
    """
    spans = _spans(labels)
    ends = _matched([token for token, _, _ in spans], words, pronunciations, boundary)
    found = []
    for word, (first, last) in zip(words, ends, strict=True):
        begin, end = spans[first][1], spans[last - 1][2]
        score = float(sum(log_probs[frame, labels[frame]] for frame in range(begin, end)))
        found.append(Word(word, begin * seconds, end * seconds, score))
    return tuple(found)


def _spans(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    """Token, first frame and frame after the last one, of each run of a token that is not the blank."""
    found, frame = [], 0
    for token, run in groupby(labels):
        length = len(list(run))
        if token != BLANK:
            found.append((token, frame, frame + length))
        frame += length
    return found


def _matched(
    tokens: Sequence[int],
    words: Sequence[str],
    pronunciations: Mapping[str, Sequence[tuple[int, ...]]],
    boundary: int | None,
) -> list[tuple[int, int]]:
    """First token, and token after the last one, of each word. ValueError: the tokens are not those of the words."""

    def skipped(position: int) -> int:
        while position < len(tokens) and tokens[position] == boundary:
            position += 1
        return position

    # For each word the positions where it may end, each with where it began, and where the word before it ended.
    steps: list[dict[int, tuple[int, int]]] = []
    reached = {0}
    for word in words:
        step: dict[int, tuple[int, int]] = {}
        for before in sorted(reached):
            begin = skipped(before)
            for sequence in pronunciations[word]:
                end = begin + len(sequence)
                if tuple(tokens[begin:end]) == sequence:
                    step.setdefault(end, (begin, before))
        steps.append(step)
        reached = set(step)
    last = next((end for end in sorted(reached) if skipped(end) == len(tokens)), None)
    if last is None:
        raise ValueError("the tokens of the path are not those of its words")
    found = []
    for step in reversed(steps):
        begin, before = step[last]
        found.append((begin, last))
        last = before
    return found[::-1]
