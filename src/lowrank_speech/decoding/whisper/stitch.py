"""Stitch the tokens of overlapping chunks by what neighbours have in common.

The rule is that of transformers' pipeline (``_find_longest_common_sequence`` in tokenization_whisper.py): of all
alignments of the end of the left chunk with the start of the right one, it takes the one with the largest share of
equal tokens, and cuts both in its middle. This function also says where each token comes from, for its times, and
whether neighbours had anything in common.
"""

from collections.abc import Sequence

import numpy as np

EPSILON = 1e-4
"""Favours long matches among equally good ones."""


def stitch(chunks: Sequence[Sequence[int]]) -> list[list[tuple[int, int]]]:
    """(chunk, place) of the tokens to keep, in order. A new list begins where neighbours had nothing in common."""
    if not chunks:
        return []
    runs: list[list[tuple[int, int]]] = [[]]
    first = 0  # of the left chunk, the tokens before it are already kept
    for number in range(1, len(chunks)):
        left, right = np.asarray(chunks[number - 1][first:]), np.asarray(chunks[number])
        cut = _match(left, right)
        end, start = (len(left), 0) if cut is None else cut
        runs[-1] += [(number - 1, first + place) for place in range(end)]
        if cut is None:
            runs.append([])
        first = start
    runs[-1] += [(len(chunks) - 1, place) for place in range(first, len(chunks[-1]))]
    return [run for run in runs if run]


def _match(left: np.ndarray, right: np.ndarray) -> tuple[int, int] | None:
    """Where to end ``left`` and to start ``right``; None: they have less than two tokens in common."""
    best, found = 0.0, None
    for i in range(1, len(left) + len(right)):
        begin, end = max(0, len(left) - i), min(len(left), len(left) + len(right) - i)
        start, stop = max(0, i - len(left)), min(len(right), i)
        matches = int((left[begin:end] == right[start:stop]).sum())
        share = matches / i + i * EPSILON
        if matches > 1 and share > best:
            best, found = share, ((begin + end) // 2, (start + stop) // 2)
    return found
