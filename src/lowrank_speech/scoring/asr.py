"""Error rates of speech recognition: WER and CER with counts, intervals, breakdowns and confusions.

Words are compared as they stand: case, punctuation and Unicode form count, so normalise before. Characters are Unicode
code points of the words joined by one space; that space counts as a character or not (``ScoreOptions.characters``).
Alignment is kaldialign's, all errors at cost 1; the sum of errors is the Levenshtein distance, while its split into
substitutions, deletions and insertions is that of one of the equally cheap alignments.

An empty reference has no words, so every word of its hypothesis is an insertion. Rates are fractions, and None where
there is nothing to divide by.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import kaldialign
import numpy as np
import pandas as pd

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.options import ScoreOptions

GAP = ""  # no word and no character is empty, so the gap of an alignment cannot be mistaken for one
WORD_COUNTS = ["words", "substitutions", "deletions", "insertions"]
CHAR_COUNTS = ["characters", "char_substitutions", "char_deletions", "char_insertions"]
COUNTS = [*WORD_COUNTS, *CHAR_COUNTS, "wrong"]


def pair(
    ref: Mapping[str, Sequence[str]],
    hyp: Mapping[str, Sequence[str]],
    missing_as_empty: bool = False,
    names: tuple[str, str] = ("the references", "the hypotheses"),
) -> dict[str, tuple[list[str], list[str]]]:
    """Pair references with hypotheses: id -> (reference words, hypothesis words), in the references' order.

    ``names`` of the two for messages. ValueError: no reference, a hypothesis without a reference, a reference without a
    hypothesis (unless ``missing_as_empty``, which takes it as empty: all words are deletions), all references empty.
    """
    if not ref:
        raise ValueError(f"{names[0]}: no utterance to score")
    extra = [name for name in hyp if name not in ref]
    if extra:
        raise ValueError(f"{names[1]}: utterance {extra[0]!r}{_more(extra)} has no reference in {names[0]}")
    missing = [name for name in ref if name not in hyp]
    if missing and not missing_as_empty:
        raise ValueError(
            f"{names[1]}: no hypothesis for utterance {missing[0]!r}{_more(missing)} of {names[0]}; "
            "where that is meant, `lowrank-speech score asr --missing-as-empty` counts its words as deletions"
        )
    if not any(ref.values()):
        raise ValueError(f"{names[0]}: all {len(ref)} references are empty, so there is no error rate")
    return {name: (list(words), list(hyp.get(name, ()))) for name, words in ref.items()}


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[str, str]]:
    """Alignment of least cost: pairs (reference, hypothesis); "" is a gap on either side."""
    return kaldialign.align(list(ref), list(hyp), GAP)


def count(ref: Sequence[str], hyp: Sequence[str]) -> tuple[int, int, int, int]:
    """Symbols in ``ref``, substitutions, deletions, insertions."""
    found = kaldialign.edit_distance(list(ref), list(hyp))
    return len(ref), found["sub"], found["del"], found["ins"]


def per_utterance(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]], characters: str = "with-spaces"
) -> pd.DataFrame:
    """One row per utterance, indexed by id: word and character counts, ``wrong`` (1 where any word is), ref, hyp."""
    space = " " if characters == "with-spaces" else ""
    rows = []
    for ref, hyp in pairs.values():
        words, chars = count(ref, hyp), count(space.join(ref), space.join(hyp))
        rows.append((*words, *chars, int(sum(words[1:]) > 0), " ".join(ref), " ".join(hyp)))
    return pd.DataFrame(rows, columns=[*COUNTS, "ref", "hyp"], index=pd.Index(pairs, name="id"))


def confusions(pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]], most: int) -> dict[str, list]:
    """The most frequent word errors: substitutions [ref, hyp, n], deletions [ref, n], insertions [hyp, n]."""
    found = Counter(two for ref, hyp in pairs.values() for two in align(ref, hyp) if two[0] != two[1])
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    return {
        "substitutions": [[ref, hyp, n] for (ref, hyp), n in ranked if ref != GAP and hyp != GAP][:most],
        "deletions": [[ref, n] for (ref, hyp), n in ranked if hyp == GAP][:most],
        "insertions": [[hyp, n] for (ref, hyp), n in ranked if ref == GAP][:most],
    }


def rates(counts: np.ndarray) -> np.ndarray:
    """WER, CER and SER (share of utterances with an error), (..., 3); NaN is 0/0.

    ``counts`` (..., 10) are sums of the columns ``COUNTS`` and, last, the number of utterances.
    """
    errors = np.stack([counts[..., 1:4].sum(-1), counts[..., 5:8].sum(-1), counts[..., 8]], axis=-1)
    total = np.stack([counts[..., 0], counts[..., 4], counts[..., 9]], axis=-1)
    return np.divide(errors, total, out=np.full(errors.shape, np.nan), where=total > 0)


def summary(table: pd.DataFrame, units: np.ndarray, options: ScoreOptions, seed: int) -> dict[str, Any]:
    """Counts, rates and intervals over the rows of ``table`` (from :func:`per_utterance`); ``units`` (S,) as drawn.

    An interval is [low, high], or None with fewer than two units or without bootstrap.
    """
    counts = np.column_stack([table[COUNTS].to_numpy(np.float64), np.ones(len(table))])
    wer, cer, ser = (None if np.isnan(r) else float(r) for r in rates(counts.sum(0)))
    intervals = dict.fromkeys(("wer", "cer", "ser"))
    if options.bootstrap and bootstrap.varies(units):
        blocks = bootstrap.weights(units, options.bootstrap, seed)
        values = np.concatenate([rates(block @ counts) for block in blocks])
        intervals = {key: bootstrap.interval(v, options.confidence) for key, v in zip(intervals, values.T, strict=True)}
    return {
        "wer": wer,
        "cer": cer,
        "ser": ser,
        "interval": intervals,
        "utterances": len(table),
        "utterances_wrong": int(table["wrong"].sum()),
        **{key: int(table[key].sum()) for key in (*WORD_COUNTS, *CHAR_COUNTS)},
    }


def breakdown(
    table: pd.DataFrame, groups: Mapping[str, str], what: str, units: np.ndarray, options: ScoreOptions, seed: int
) -> dict[str, dict[str, Any]]:
    """:func:`summary` for each group (language, speaker), sorted by name; ``groups`` maps id -> group.

    ValueError when an utterance has no group.
    """
    for name in table.index:
        if name not in groups:
            raise ValueError(f"utterance {name!r} has no {what} in the {what} map; add it")
    group = np.array([groups[name] for name in table.index])
    return {str(g): summary(table[group == g], units[group == g], options, seed) for g in np.unique(group)}


def worst(table: pd.DataFrame, most: int | None = None) -> list[dict[str, Any]]:
    """The utterances with errors, those with the most word errors first: id, wer, counts, ref, hyp."""
    errors = table[["substitutions", "deletions", "insertions"]].sum(axis=1)
    chosen = table.assign(errors=errors)[errors > 0].sort_values("errors", ascending=False, kind="stable")
    return [
        {
            "id": row.Index,
            "wer": row.errors / row.words if row.words else None,
            **{key: int(getattr(row, key)) for key in WORD_COUNTS},
            "ref": row.ref,
            "hyp": row.hyp,
        }
        for row in chosen.iloc[:most].itertuples()
    ]


def score(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    options: ScoreOptions,
    seed: int,
    speakers: Mapping[str, str] | None = None,
    languages: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All metrics as JSON values: those of :func:`summary`, breakdowns and confusions, and the settings behind them.

    ``by_language`` and ``by_speaker`` appear where a map (id -> language, id -> speaker) is given, ``language_mean``
    (every language with the same weight) with two languages or more.
    """
    table = per_utterance(pairs, options.characters)
    units, drawn = bootstrap.units_of(list(table.index), speakers, options.resample)
    result = summary(table, units, options, seed) | {
        "confidence": options.confidence,
        "bootstrap": options.bootstrap,
        "resampled": drawn,
        "units": len(np.unique(units)),
        "character_counting": options.characters,
        "empty_references": int((table["words"] == 0).sum()),
        "confusions": confusions(pairs, options.confusions),
        "worst": worst(table, options.worst),
    }
    if languages is not None:
        by_language = breakdown(table, languages, "language", units, options, seed)
        result["by_language"] = by_language
        if len(by_language) > 1:
            result["language_mean"] = {
                key: float(np.mean([b[key] for b in by_language.values() if b[key] is not None]))
                for key in ("wer", "cer")
            }
    if speakers is not None:
        by_utterance = np.arange(len(table))
        result["by_speaker"] = breakdown(table, speakers, "speaker", by_utterance, options, seed)
    return result
