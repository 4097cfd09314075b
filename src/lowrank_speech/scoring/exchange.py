"""Transcripts for other scorers: TRN (NIST's transcripts for sclite) and CTM (words with times).

    TRN   word word ... (speaker_utterance), a line for each utterance
    CTM   utterance channel start duration word confidence, a line for each word; times in seconds

In sclite's TRN the speaker is what precedes the first ``-`` or ``_`` of the id, so ``speaker-`` is put before ids that
do not begin with it. sclite takes ``{ a / b }`` for alternatives, ``@`` for no word, ``;`` for a comment and a word in
parentheses for an optional one, and knows no escapes. So these characters become %7B and so on, as in URLs, on both
sides: different words stay different. Compare with `sclite -s -e utf-8`, else it ignores case.

Source: sclite(1) of NIST's SCTK; tried with SCTK 2.4.10.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_MEANT = re.compile(r"[%{}@/();*\\]")


def trn(texts: Mapping[str, Sequence[str]], speakers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The lines of a TRN file; ``texts``: id -> words."""
    for name, words in texts.items():
        yield " ".join([*map(escaped, words), f"({label(name, speakers)})"])


def escaped(word: str) -> str:
    """``word`` without characters that sclite would interpret."""
    return _MEANT.sub(lambda found: f"%{ord(found[0]):02X}", word)


def label(name: str, speakers: Mapping[str, str] | None) -> str:
    """The id of an utterance in a TRN file: with its speaker in front."""
    speaker = None if speakers is None else speakers[name]
    if speaker is None or name.startswith((f"{speaker}-", f"{speaker}_")):
        return escaped(name)
    return escaped(f"{speaker}-{name}")


def ctm(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The lines of a CTM file, from rows of hypotheses.jsonl. ValueError: a word ends before it starts, or has blanks.

    The confidence is the probability of the word, where the decoder has one.
    """
    for row in rows:
        for word in sorted(row.get("words") or (), key=lambda word: word["start"]):
            start, end, text = word["start"], word["end"], word["text"].strip()
            if end < start or start < 0:
                raise ValueError(f"utterance {row['id']!r}: the word {text!r} has the times {start} to {end} s")
            if not text or text.split() != [text]:
                raise ValueError(f"utterance {row['id']!r}: {text!r} is not one word, so it has no line in a CTM")
            score = word.get("score")
            shown = "" if score is None else f" {min(1.0, math.exp(score)):.4f}"
            yield f"{row['id']} 1 {start:.3f} {end - start:.3f} {escaped(text)}{shown}"
