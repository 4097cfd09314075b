"""Score and key files in the forms of the NIST language recognition evaluations (LRE): read and write.

    table   segmentid<TAB>ara<TAB>eng...       LRE15, 17, 22: a header, a line per segment
    lines   segmentid language score           a line per segment and language; the header is optional
    lre07   general_lr eng closed_set SEGMENT t -1.5 [eng]     LRE07, 09: test, language, condition, segment, decision,
                                               score and, in the files of NIST's scorer, the true language
    key     segmentid<TAB>language<TAB>...     a header in any order; or two columns without header

The form follows from the first line. Columns are found by their names (``COLUMNS``), so their order does not matter.
Fields are separated by tabs, or by white space in files without tabs. A key may also have durations, sources and
speakers. Scores are log-likelihoods, as LRE17 and LRE22 define them; the scorer makes ratios of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lowrank_speech.scoring import files
from lowrank_speech.scoring.detection import llr
from lowrank_speech.scoring.options import Form

COLUMNS = {
    "segment": ("segmentid", "segment_id", "segment", "segid", "seg_id", "id", "utt", "utterance", "file", "filename"),
    "language": ("language", "language_code", "lang", "label", "true_language", "target_language", "languageid"),
    "score": ("score", "llr", "loglikelihood", "log_likelihood"),
    "duration": ("duration", "speech_duration", "seconds", "length", "nominal_length", "nominal_duration"),
    "source": ("source", "data_source", "source_type", "corpus"),
    "speaker": ("speaker", "speaker_id", "speakerid", "spk", "subject_id", "subjectid"),
}
CONDITIONS = ("closed_set", "open_set")


@dataclass
class Key:
    """What a key says of each segment: id -> language, duration (seconds, as text), source, speaker.

    All but ``labels`` are None if the key does not have the column.
    """

    labels: dict[str, str]
    durations: dict[str, str] | None = None
    sources: dict[str, str] | None = None
    speakers: dict[str, str] | None = None


@dataclass
class _Form:
    """How to read a file: ``name``, number of fields, column of each kind of field, whether line 1 is a header."""

    name: str
    columns: dict[str, int] = field(default_factory=dict)
    width: int = 0
    header: bool = False
    tabs: bool = False

    def split(self, line: str) -> list[str]:
        return _split(line, self.tabs)


def _split(line: str, tabs: bool) -> list[str]:
    return [f.strip() for f in line.split("\t")] if tabs else files.words(line)


def _first(path: str | Path) -> tuple[int, str, list[str], bool]:
    """Number, text and fields of the first line, and whether tabs separate them. ValueError: there is none."""
    for number, line in files.lines(path):
        tabs = "\t" in line
        return number, line, _split(line, tabs), tabs
    raise ValueError(f"{path}: the file is empty; expected scores or a key")


def _named(fields: Sequence[str]) -> dict[str, int]:
    """Kind of field -> column, for the names that are known."""
    found: dict[str, int] = {}
    for column, name in enumerate(fields):
        for kind, names in COLUMNS.items():
            if name.lower() in names:
                found.setdefault(kind, column)
    return found


def _lre07(fields: Sequence[str]) -> bool:
    return len(fields) in (6, 7) and fields[2].lower() in CONDITIONS and fields[4].lower() in ("t", "f")


def _score_form(path: str | Path) -> _Form:
    number, line, fields, tabs = _first(path)
    if _lre07(fields):
        return _Form("lre07", {"language": 1, "segment": 3, "score": 5}, len(fields), tabs=tabs)
    named = _named(fields)
    if {"segment", "language", "score"} <= named.keys():
        return _Form("lines", named, len(fields), header=True, tabs=tabs)
    if fields[0].lower() in COLUMNS["segment"]:
        return _Form("table", tabs=tabs)
    if len(fields) == 3 and files.is_number(fields[2]) and not files.is_number(fields[1]):
        return _Form("lines", {"segment": 0, "language": 1, "score": 2}, 3, tabs=tabs)
    if len(fields) > 1 and all(map(files.is_number, fields[1:])):
        raise ValueError(f"{path}:{number}: the header is missing; put 'id' and the language names in the first line")
    raise ValueError(
        f"{path}:{number}: the form of this file is not known, its first line is {files.shown(line)!r}; expected a "
        f"header 'segmentid LANGUAGE LANGUAGE ...', lines 'segment language score', or those of LRE07"
    )


def read_scores(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """Ids (S), languages (N) and scores (S, N) of a file in any of the forms; lines may have any order.

    ValueError: the form is not known, a line has another number of fields, a score is not a number, a pair of segment
    and language occurs twice or is missing.
    """
    form = _score_form(path)
    if form.name == "table":
        return files.read_scores(path)
    segments: dict[str, int] = {}
    languages: dict[str, int] = {}
    found: dict[tuple[int, int], float] = {}
    where: dict[tuple[int, int], int] = {}
    for number, fields in _body(path, form):
        name, language, score = (fields[form.columns[kind]] for kind in ("segment", "language", "score"))
        if not files.is_number(score):
            raise ValueError(
                f"{path}:{number}: segment {name!r}, language {language!r}: {score!r} is not a number; expected a "
                "log-likelihood"
            )
        pair = segments.setdefault(name, len(segments)), languages.setdefault(language, len(languages))
        if pair in found:
            raise ValueError(
                f"{path}:{number}: segment {name!r} and language {language!r} are also in line {where[pair]}; remove "
                "one line"
            )
        found[pair], where[pair] = float(score), number
    _complete(path, segments, languages, found)
    scores = np.empty((len(segments), len(languages)))
    for pair, score in found.items():
        scores[pair] = score
    return list(segments), list(languages), scores


def _body(path: str | Path, form: _Form) -> Iterable[tuple[int, list[str]]]:
    """Number and fields of each line below the header. ValueError: a line has another number of fields."""
    header = form.header
    for number, line in files.lines(path):
        if header:
            header = False
            continue
        fields = form.split(line)
        if len(fields) != form.width or not all(fields):
            raise ValueError(f"{path}:{number}: expected {form.width} fields, as in line 1, got {files.shown(line)!r}")
        yield number, fields


def _complete(path: str | Path, segments: Mapping, languages: Mapping, found: Mapping) -> None:
    """ValueError: a segment has no score of some language."""
    missing = len(segments) * len(languages) - len(found)
    if not segments:
        raise ValueError(f"{path}: the file has no segment; expected lines 'segment language score'")
    if missing:
        for name, s in segments.items():
            for language, n in languages.items():
                if (s, n) not in found:
                    more = f" ({missing} scores are missing in all)" if missing > 1 else ""
                    raise ValueError(f"{path}: segment {name!r} has no score of language {language!r}{more}; add it")


def read_key(path: str | Path) -> Key:
    """The true language of each segment, and what else the key says.

    ValueError: the header is not known, a line has another number of fields, or a segment occurs twice.
    """
    number, line, fields, tabs = _first(path)
    if _lre07(fields):
        if len(fields) == 6:
            raise ValueError(f"{path}:{number}: these lines have no true language (field 7); expected a key")
        return Key(_lre07_labels(path, _Form("lre07", {}, 7, tabs=tabs)))
    named = _named(fields)
    if not {"segment", "language"} <= named.keys():
        if len(fields) == 2:
            return Key(files.read_map(path))  # without header
        raise ValueError(
            f"{path}:{number}: the header of this key is not known: {files.shown(line)!r}; expected columns "
            "'segmentid' and 'language', or two columns without header"
        )
    if len(fields) == 2 and named == {"segment": 0, "language": 1} and fields[0].lower() in files.IDS:
        return Key(files.read_map(path))
    form = _Form("key", named, len(fields), header=True, tabs=tabs)
    kinds = [kind for kind in ("language", "duration", "source", "speaker") if kind in named]
    tables = {kind: files.Table(path) for kind in kinds}
    for at, values in _body(path, form):
        for kind, table in tables.items():
            value = values[named[kind]]
            table.add(values[named["segment"]], at, _seconds(value) if kind == "duration" else value)
    found = {kind: table.value for kind, table in tables.items()}
    if not found["language"]:
        raise ValueError(f"{path}: the key has no segment; expected a line for each")
    return Key(found["language"], found.get("duration"), found.get("source"), found.get("speaker"))


def _seconds(text: str) -> str:
    """``30``, ``30s`` and ``30 sec`` alike."""
    return text.lower().removesuffix("ec").removesuffix("s").strip()


def _lre07_labels(path: str | Path, form: _Form) -> dict[str, str]:
    labels: dict[str, str] = {}
    for number, fields in _body(path, form):
        name, language = fields[3], fields[6]
        if labels.setdefault(name, language) != language:
            raise ValueError(
                f"{path}:{number}: segment {name!r} has the language {language!r} here and {labels[name]!r} above; "
                "keep one"
            )
    return labels


def score_lines(form: Form, ids: Sequence[str], languages: Sequence[str], scores: np.ndarray) -> Iterable[str]:
    """The lines of a score file. Scores have 17 digits, so reading them again gives the same numbers.

    ``lre07``: the decision is that of C_avg at P = 0.5 (ratio above 0); the score stays the log-likelihood.
    """
    if form == "table":
        yield "\t".join(("segmentid", *languages))
        for name, row in zip(ids, scores.tolist(), strict=True):
            yield "\t".join((name, *map(repr, row)))
        return
    if form == "lines":
        yield "segmentid\tlanguage\tscore"
    ratios = llr(scores) if form == "lre07" else scores
    for name, row, accepted in zip(ids, scores.tolist(), ratios > 0, strict=True):
        for language, score, yes in zip(languages, row, accepted, strict=True):
            if form == "lines":
                yield f"{name}\t{language}\t{score!r}"
            else:
                yield f"general_lr {language} closed_set {name} {'t' if yes else 'f'} {score!r}"


def key_lines(key: Key) -> Iterable[str]:
    """The lines of a key: a header and a line per segment."""
    maps = {"language": key.labels, "speech_duration": key.durations, "data_source": key.sources}
    maps = {name: values for name, values in maps.items() if values is not None}
    yield "\t".join(("segmentid", *maps))
    for one in key.labels:
        yield "\t".join((one, *(values[one] for values in maps.values())))
