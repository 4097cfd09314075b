"""Error rates of speech recognition: WER and CER with counts, confidence intervals, breakdowns and confusions.

Words are compared exactly, including case, punctuation and Unicode form, so normalise them first (:func:`normalised`
applies a function to both sides). Characters are the
Unicode code points of the words joined by single spaces; ``ScoreOptions.characters`` says whether the spaces count. The
alignment is kaldialign's, with cost 1 for all errors. The total number of errors is the Levenshtein distance; if
several alignments have it, the numbers of substitutions, deletions and insertions are those of one of them.

An empty reference has no words, so every word of its hypothesis is an insertion. Rates are fractions, or None if the
denominator is 0.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kaldialign
import numpy as np
import pandas as pd

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.options import ScoreOptions

GAP = ""  # gap in an alignment; no word and no character is empty
WORD_COUNTS = ["words", "substitutions", "deletions", "insertions"]
CHAR_COUNTS = ["characters", "char_substitutions", "char_deletions", "char_insertions"]
COUNTS = [*WORD_COUNTS, *CHAR_COUNTS, "wrong"]


def pair(
    ref: Mapping[str, Sequence[str]],
    hyp: Mapping[str, Sequence[str]],
    missing_as_empty: bool = False,
    names: tuple[str, str] = ("the references", "the hypotheses"),
) -> dict[str, tuple[list[str], list[str]]]:
    """Pair references with hypotheses: id -> (reference words, hypothesis words), in the order of the references.

    ``names``: names of the two for messages. With ``missing_as_empty``, a missing hypothesis counts as an empty one.
    ValueError: no references, a hypothesis without a reference, a missing hypothesis, or only empty references.
    """
    if not ref:
        raise ValueError(f"{names[0]}: there is no utterance to score")
    extra = [name for name in hyp if name not in ref]
    if extra:
        raise ValueError(f"{names[1]}: utterance {extra[0]!r}{_more(extra)} has no reference in {names[0]}")
    missing = [name for name in ref if name not in hyp]
    if missing and not missing_as_empty:
        raise ValueError(
            f"{names[1]}: no hypothesis for utterance {missing[0]!r}{_more(missing)} of {names[0]}; "
            "`lowrank-speech score asr --missing-as-empty` counts its words as deletions"
        )
    if not any(ref.values()):
        raise ValueError(f"{names[0]}: all {len(ref)} references are empty, so error rates are not defined")
    return {name: (list(words), list(hyp.get(name, ()))) for name, words in ref.items()}


def normalised(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    normalise: Callable[[str, str | None], str],
    languages: Mapping[str, str] | None = None,
) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, str]]:
    """Normalise both sides of ``pairs``; also returns the references of which nothing is left, as they were.

    ``normalise(text, language)`` returns the text to compare; the language is None if ``languages`` (id -> language)
    does not know it. Emptied references stay in the pairs: every word of their hypotheses is an insertion. ValueError:
    nothing is left of any reference.
    """
    result: dict[str, tuple[list[str], list[str]]] = {}
    emptied: dict[str, str] = {}
    for name, (ref, hyp) in pairs.items():
        language = None if languages is None else languages.get(name)
        ref_words, hyp_words = (normalise(" ".join(words), language).split() for words in (ref, hyp))
        if ref and not ref_words:
            emptied[name] = " ".join(ref)
        result[name] = ref_words, hyp_words
    if not any(ref for ref, _ in result.values()):
        name, text = next(iter(emptied.items()))
        raise ValueError(
            f"the normaliser leaves nothing of all {len(emptied)} references, such as {text!r} of {name!r}; choose "
            f"another one"
        )
    return result, emptied


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def align(ref: Sequence[str], hyp: Sequence[str]) -> list[tuple[str, str]]:
    """Minimum-cost alignment as pairs (reference, hypothesis); "" is a gap."""
    return kaldialign.align(list(ref), list(hyp), GAP)


def count(ref: Sequence[str], hyp: Sequence[str]) -> tuple[int, int, int, int]:
    """Number of symbols in ``ref``, substitutions, deletions, insertions."""
    found = kaldialign.edit_distance(list(ref), list(hyp))
    return len(ref), found["sub"], found["del"], found["ins"]


def per_utterance(
    pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]], characters: str = "with-spaces"
) -> pd.DataFrame:
    """One row per utterance, indexed by id: word and character counts, ``wrong`` (1 if any word is wrong), ref, hyp."""
    space = " " if characters == "with-spaces" else ""
    rows = []
    for ref, hyp in pairs.values():
        words, chars = count(ref, hyp), count(space.join(ref), space.join(hyp))
        rows.append((*words, *chars, int(sum(words[1:]) > 0), " ".join(ref), " ".join(hyp)))
    return pd.DataFrame(rows, columns=[*COUNTS, "ref", "hyp"], index=pd.Index(pairs, name="id"))


def empty(table: pd.DataFrame) -> pd.Series:
    """Which hypotheses are empty although their references are not."""
    return (table["words"] > 0) & (table["words"] - table["deletions"] + table["insertions"] == 0)


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
    """WER, CER and SER (share of utterances with an error), (..., 3); NaN for 0/0.

    ``counts`` (..., 10): sums of the columns ``COUNTS``, then the number of utterances.
    """
    errors = np.stack([counts[..., 1:4].sum(-1), counts[..., 5:8].sum(-1), counts[..., 8]], axis=-1)
    total = np.stack([counts[..., 0], counts[..., 4], counts[..., 9]], axis=-1)
    return np.divide(errors, total, out=np.full(errors.shape, np.nan), where=total > 0)


def summary(table: pd.DataFrame, units: np.ndarray, options: ScoreOptions, seed: int) -> dict[str, Any]:
    """Counts, rates and intervals over the rows of ``table`` (from :func:`per_utterance`).

    ``units`` (S,): the bootstrap unit of each row. An interval is [low, high], or None without bootstrap or with fewer
    than two units.
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
    """:func:`summary` of each group (language or speaker), sorted by name; ``groups`` maps id -> group.

    ValueError: an utterance has no group.
    """
    for name in table.index:
        if name not in groups:
            raise ValueError(f"utterance {name!r} has no {what} in the {what} map; add it")
    group = np.array([groups[name] for name in table.index])
    return {str(g): summary(table[group == g], units[group == g], options, seed) for g in np.unique(group)}


def by_length(
    table: pd.DataFrame, lengths: np.ndarray, ends: Sequence[float], units: np.ndarray, options: ScoreOptions, seed: int
) -> dict[str, dict[str, Any]]:
    """:func:`summary` of the utterances in each range of ``lengths`` (S,); empty ranges are left out.

    ``ends``: the upper ends of the ranges, which belong to them. Names such as "0", "1-5", "6-10", "over 10" for
    integer ``lengths``, else "0-2", "2-5".
    """
    whole = np.issubdtype(lengths.dtype, np.integer)
    ends = [0, *ends] if whole and 0 not in ends else list(ends)
    place, result = np.searchsorted(ends, lengths, side="left"), {}
    for i in np.unique(place):
        low = (ends[i - 1] + (whole and i < len(ends))) if i else 0
        name = f"over {low:g}" if i == len(ends) else f"{low:g}-{ends[i]:g}"
        result["0" if name == "0-0" else name] = summary(table[place == i], units[place == i], options, seed)
    return result


def worst(table: pd.DataFrame, most: int | None = None) -> list[dict[str, Any]]:
    """The utterances with errors, most word errors first: id, wer, counts, ref, hyp."""
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
    emptied: Mapping[str, str] | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All metrics as JSON values: those of :func:`summary`, breakdowns, confusions, and the settings used.

    ``pairs`` are already normalised as ``options`` says; ``emptied``: the second result of :func:`normalised`.
    ``by_language`` and ``by_speaker`` are present if a map (id -> language, id -> speaker) is given. ``language_mean``
    (all languages have the same weight) is present with two languages or more. ``by_length`` has ranges of reference
    ``words``, and of ``seconds`` if durations are given (id -> seconds).
    """
    table = per_utterance(pairs, options.characters)
    units, drawn = bootstrap.units_of(list(table.index), speakers, options.resample)
    result = summary(table, units, options, seed) | {
        "confidence": options.confidence,
        "bootstrap": options.bootstrap,
        "resampled": drawn,
        "units": len(np.unique(units)),
        "character_counting": options.characters,
        "normaliser": options.normaliser,
        "numbers": options.numbers,
        "empty_references": int((table["words"] == 0).sum()),
        "empty_hypotheses": int(empty(table).sum()),
        "emptied_references": [{"id": name, "ref": ref} for name, ref in (emptied or {}).items()],
        "confusions": confusions(pairs, options.confusions),
        "worst": worst(table, options.worst),
        "by_length": {"words": by_length(table, table["words"].to_numpy(), options.word_bins, units, options, seed)},
    }
    if seconds is not None:
        for name in table.index:
            if name not in seconds:
                raise ValueError(f"utterance {name!r} has no duration; add it to seconds.tsv")
        known = np.array([seconds[name] for name in table.index], dtype=np.float64)
        result["by_length"]["seconds"] = by_length(table, known, options.second_bins, units, options, seed)
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
