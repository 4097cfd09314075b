"""Oracle error of n-best lists: the word error rate if the best of the first n hypotheses were known.

For each utterance and each n, the hypothesis with the fewest word errors among the first n counts. So the rate at 1 is
that of the first hypotheses, it never rises with n, and a list that ends before n counts as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_speech.scoring import asr


def curve(refs: Mapping[str, Sequence[str]], lists: Mapping[str, Sequence[Sequence[str]]]) -> dict[str, Any] | None:
    """``wer`` (the rate for n = 1, 2, ... up to the longest list), ``errors`` alike, ``words``, and ``mean_length``.

    refs: id -> reference words; lists: id -> hypotheses (words), the best first. None if no list has two hypotheses, or
    there is no reference word. ValueError: an utterance has no list.
    """
    missing = [name for name in refs if not lists.get(name)]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ValueError(f"utterance {missing[0]!r}{more} has no list of hypotheses")
    longest, words = max(len(lists[name]) for name in refs), sum(map(len, refs.values()))
    if longest < 2 or not words:
        return None
    errors = [0] * longest
    for name, ref in refs.items():
        best, known = None, {}
        for n in range(longest):
            if n < len(lists[name]):
                hyp = tuple(lists[name][n])
                if hyp not in known:
                    known[hyp] = sum(asr.count(ref, hyp)[1:])
                best = known[hyp] if best is None else min(best, known[hyp])
            errors[n] += best
    length = sum(len(lists[name]) for name in refs) / len(refs)
    return {"wer": [e / words for e in errors], "errors": errors, "words": words, "mean_length": length}


def listed(row: Mapping[str, Any], key: str) -> list[list[str]]:
    """The hypotheses (words) of a row of hypotheses.jsonl; ``key``: "text", or "raw" before normalisation."""
    return [(one.get(key) or one["text"]).split() for one in row.get("nbest") or ()]
