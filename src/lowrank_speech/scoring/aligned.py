"""Alignments as text, as NIST's sclite prints them.

pra   for each utterance the counts (correct, substituted, deleted, inserted) and the aligned words; a gap is ``***``,
      and ``Eval`` marks errors with S, D and I
dtl   totals, and all pairs of confused words, inserted, deleted, substituted and falsely recognised words with counts

sclite prints wrong words in upper case. Here they stay as they are, because case may be what is wrong.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lowrank_speech.scoring import asr

Pairs = Mapping[str, tuple[Sequence[str], Sequence[str]]]
KINDS = (("Correct", "C"), ("Substitutions", "S"), ("Deletions", "D"), ("Insertions", "I"))
WRAP = 100
"""Columns of an alignment in a line; longer ones go on below."""


def kind(ref: str, hyp: str) -> str:
    """C, S, D or I for a pair of an alignment."""
    if ref == hyp:
        return "C"
    return "I" if ref == asr.GAP else "D" if hyp == asr.GAP else "S"


def width(text: str) -> int:
    """Columns in a terminal: wide East Asian characters have two, combining marks none."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def pra(pairs: Pairs, speakers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The lines of a ``.pra``."""
    for name, (ref, hyp) in pairs.items():
        found = asr.align(ref, hyp)
        counted = Counter(kind(*two) for two in found)
        yield f"id: ({name})"
        if speakers is not None:
            yield f"Speaker: {speakers[name]}"
        yield f"Scores: (#C #S #D #I) {' '.join(str(counted[letter]) for _, letter in KINDS)}"
        for columns in _wrapped(found):
            for label, cells in zip(("REF: ", "HYP: ", "Eval:"), zip(*columns, strict=True), strict=True):
                yield f"{label} {' '.join(cells)}".rstrip()
        yield ""


def _wrapped(found: Sequence[tuple[str, str]]) -> Iterator[list[tuple[str, str, str]]]:
    """The aligned columns, padded to equal width, in lines of at most ``WRAP``; at least one, which may be empty."""
    line: list[tuple[str, str, str]] = []
    used = 0
    for ref, hyp in found:
        size = max(width(ref), width(hyp))
        letter = kind(ref, hyp)
        if line and used + size + 1 > WRAP:
            yield line
            line, used = [], 0
        cells = (ref or "*" * width(hyp), hyp or "*" * width(ref), letter if letter != "C" else "")
        line.append(tuple(cell + " " * (size - width(cell)) for cell in cells))
        used += size + 1
    yield line or [("", "", "")]


def dtl(pairs: Pairs, title: str) -> Iterator[str]:
    """The lines of a ``.dtl``."""
    aligned = [asr.align(ref, hyp) for ref, hyp in pairs.values()]
    found = Counter(two for one in aligned for two in one)
    counted = Counter()
    for two, n in found.items():
        counted[kind(*two)] += n
    words = sum(counted[letter] for letter in "CSD")
    wrong = sum(any(ref != hyp for ref, hyp in one) for one in aligned)
    errors = counted["S"] + counted["D"] + counted["I"]
    yield from (f"DETAILED OVERALL REPORT: {title}", "", "SENTENCE RECOGNITION PERFORMANCE", "")
    yield _line("sentences", len(aligned), None)
    yield _line("with errors", wrong, len(aligned))
    for what, letter in KINDS[1:]:
        has = sum(any(kind(*two) == letter for two in one) for one in aligned)
        yield _line(f"  with {what.lower()}", has, len(aligned))
    yield from ("", "WORD RECOGNITION PERFORMANCE", "")
    yield _line("Percent Total Error", errors, words)
    for what, letter in KINDS:
        yield _line(f"Percent {what if letter == 'C' else what.removesuffix('s')}", counted[letter], words)
    yield _line("Percent Word Accuracy", words - errors, words)
    yield _line("Ref. words", words, None)
    yield _line("Hyp. words", words - counted["D"] + counted["I"], None)
    yield _line("Aligned words", words + counted["I"], None)
    confused = {f"{ref} ==> {hyp}": n for (ref, hyp), n in found.items() if kind(ref, hyp) == "S"}
    yield from _ranked("CONFUSION PAIRS", confused.items())
    yield from _ranked("INSERTIONS", ((hyp, n) for (ref, hyp), n in found.items() if ref == asr.GAP))
    yield from _ranked("DELETIONS", ((ref, n) for (ref, hyp), n in found.items() if hyp == asr.GAP))
    for what, side in (("SUBSTITUTIONS", 0), ("FALSELY RECOGNIZED", 1)):
        mistaken: Counter[str] = Counter()
        for two, n in found.items():
            if kind(*two) == "S":
                mistaken[two[side]] += n
        yield from _ranked(what, mistaken.items())


def _line(what: str, number: int, total: int | None) -> str:
    share = "" if not total else f"{100 * number / total:6.1f} %  "
    return f"{what:<26} = {share:>10} ({number:5d})"


def _ranked(title: str, found: Iterable[tuple[str, int]]) -> Iterator[str]:
    """A section of a ``.dtl``: the most frequent first, then by text."""
    rows = sorted(found, key=lambda row: (-row[1], row[0]))
    yield from ("", f"{title:<34} Total ({len(rows)})", f"{'':<34} With >= 1 occurrences ({len(rows)})", "")
    for number, (text, n) in enumerate(rows, 1):
        yield f"{number:4d}: {n:4d}  ->  {text}"
    yield f"      {'-------'}"
    yield f"      {sum(n for _, n in rows):7d}"
