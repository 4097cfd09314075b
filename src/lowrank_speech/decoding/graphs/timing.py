"""Times of the words of a path: which of its tokens belong to which word. Words may have several pronunciations."""

from collections.abc import Mapping, Sequence

from lowrank_speech.decoding.base import Word
from lowrank_speech.decoding.ctc.times import Span

Pronunciations = Mapping[str, Sequence[tuple[int, ...]]]


def timed_words(
    spans: Sequence[Span], words: Sequence[str], pronunciations: Pronunciations, boundary: int | None, seconds: float
) -> tuple[Word, ...]:
    """The words of aligned tokens, with their log probabilities; ``seconds``: duration of a frame."""
    found = []
    ranges = matched([span.token for span in spans], words, pronunciations, boundary)
    for word, (first, after) in zip(words, ranges, strict=True):
        own = spans[first:after]
        score = sum(span.score for span in own)
        found.append(Word(word, own[0].start * seconds, own[-1].end * seconds, score))
    return tuple(found)


def matched(
    tokens: Sequence[int],
    words: Sequence[str],
    pronunciations: Pronunciations,
    boundary: int | None,
) -> list[tuple[int, int]]:
    """First token, and token after the last one, of each word. ValueError: the tokens are not those of the words.

    ``boundary``: the token between words, which may also precede the first and follow the last one;
    None: there is none.
    """

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
