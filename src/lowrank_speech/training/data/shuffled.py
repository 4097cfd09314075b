"""The control shuffled-labels: training utterances get the languages of others, so there is nothing to learn.

    utterances  the languages are permuted over the utterances
    speakers    over the speakers: all utterances of a speaker get the language of another one. With a single speaker
                for each language this only renames the languages

Dev keeps its languages. The permutation depends on the seed and the ids only.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.utils import fastcopy

from lowrank_speech.errors import UserError
from lowrank_speech.features.store import load_cuts

STREAM = 0x73687566
"""Keeps the draws apart from others with the same seed."""


def shuffled(path: Path, by: str, seed: int, languages: Iterable[str]) -> dict[str, str]:
    """Id -> its new language, for the utterances in ``path`` whose language is one of ``languages`` (none: all).

    UserError: ``by`` is speakers, and one is not known.
    """
    wanted, rows = set(languages), []
    for cut in load_cuts(path, lazy=True):
        for supervision in cut.supervisions[:1]:
            if supervision.language and (not wanted or supervision.language in wanted):
                if by == "speakers" and not supervision.speaker:
                    raise UserError(f"{path}: utterance {cut.id} has no speaker; set shuffle: utterances")
                rows.append((cut.id, supervision.speaker, supervision.language))
    rows.sort()
    draw = np.random.default_rng([seed, STREAM]).permutation
    if by == "utterances":
        languages = [language for *_, language in rows]
        return {name: languages[i] for (name, *_), i in zip(rows, draw(len(rows)), strict=True)}
    spoken: dict[str, Counter] = defaultdict(Counter)
    for _, speaker, language in rows:
        spoken[speaker][language] += 1
    of = [counts.most_common(1)[0][0] for counts in spoken.values()]
    new = dict(zip(spoken, (of[i] for i in draw(len(of))), strict=True))
    return {name: new[speaker] for name, speaker, _ in rows}


def relabelling(path: Path, by: str, seed: int, languages: Iterable[str]) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A function that gives cuts their new languages; see ``shuffled``."""
    new = shuffled(path, by, seed, languages)

    def relabelled(cuts: Iterable[Any]) -> Iterator[Any]:
        for cut in cuts:
            if cut.id in new:
                cut = fastcopy(cut, supervisions=[fastcopy(s, language=new[cut.id]) for s in cut.supervisions])
            yield cut

    return relabelled
