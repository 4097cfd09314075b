"""The results of recordings as text, JSON, subtitles and CTM.

    text   the text alone, or with the name of the recording and a tabulator before it
    json   an object on one line: audio, text, language, seconds, words; for a failure also error
    srt    SubRip; vtt: WebVTT
    ctm    NIST CTM: recording, channel, start, duration, word, confidence

Source: W3C WebVTT; NIST sclite (ctm).
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.errors import UserError
from lowrank_speech.inference.results import Identification, Segment, Transcript, Word
from lowrank_speech.models.text import UNSPACED

Format = Literal["text", "json", "srt", "vtt", "ctm"]
SUFFIXES = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt", "ctm": ".ctm"}
TIMED = ("srt", "vtt", "ctm")
"""Formats that need the times of words."""
LINE, LINES, LONGEST, PAUSE = 42, 2, 7.0, 1.0
"""Characters of a line of subtitles, lines, seconds of a subtitle, and the pause that ends it."""


def transcript_json(audio: str, found: Transcript | Exception) -> dict[str, Any]:
    """The JSON object of a recording."""
    if isinstance(found, Exception):
        return {"audio": audio, "text": None, "language": None, "seconds": None, "words": None, "error": str(found)}
    words = None if found.words is None else [_word(word) for word in found.words]
    return {
        "audio": audio,
        "text": found.text,
        "language": found.language,
        "seconds": round(found.seconds, 3),
        "words": words,
    }


def identification_json(audio: str, found: Identification | Exception) -> dict[str, Any]:
    """The JSON object of a recording."""
    if isinstance(found, Exception):
        return {"audio": audio, "language": None, "probabilities": None, "error": str(found)}
    return {"audio": audio, "language": found.language, "probabilities": found.probabilities}


def line(value: dict[str, Any]) -> str:
    """An object on a line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _word(word: Word) -> dict[str, Any]:
    score = None if word.score is None else round(word.score, 4)
    return {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3), "score": score}


def ctm_names(recordings: Sequence[str]) -> dict[str, str]:
    """The name of each recording in a CTM: its stem, or if others have the same, all of its path.

    UserError: two names differ only in blanks, which a CTM cannot have.
    """
    stems = {one: _unbroken(Path(one).stem if one != "-" else "stdin") for one in recordings}
    often = Counter(stems.values())
    names: dict[str, str] = {}
    for one, stem in stems.items():
        name = stem if often[stem] == 1 else _unbroken(one)
        if name in names.values():
            other = next(key for key, value in names.items() if value == name)
            raise UserError(f"{other} and {one} would both be called {name} in the CTM; rename one of them")
        names[one] = name
    return names


def _unbroken(name: str) -> str:
    return re.sub(r"\s", "_", name)


def written(found: Transcript, audio: str, form: Format, named: bool) -> str:
    """A transcript in a format; ``named``: text begins with the name of the recording.

    ``audio``: the recording, in a CTM as ``ctm_names`` has it.
    """
    match form:
        case "text":
            return f"{audio}\t{found.text}\n" if named else f"{found.text}\n"
        case "json":
            return line(transcript_json(audio, found)) + "\n"
        case "ctm":
            return "".join(_ctm(found, audio))
        case "srt":
            return "".join(_srt(found))
        case "vtt":
            return "WEBVTT\n\n" + "".join(_vtt(found))
    raise AssertionError(form)


def _ctm(found: Transcript, audio: str) -> Iterator[str]:
    for word in found.words or ():
        confidence = "" if word.score is None else f" {min(1.0, 2.718281828459045**word.score):.4f}"
        yield f"{audio} 1 {word.start:.3f} {max(word.end - word.start, 0):.3f} {_unbroken(word.text)}{confidence}\n"


def _srt(found: Transcript) -> Iterator[str]:
    for number, (start, end, text) in enumerate(cues(found), start=1):
        yield f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


def _vtt(found: Transcript) -> Iterator[str]:
    for start, end, text in cues(found):
        # A cue's text must not contain the arrow, nor markup.
        text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n\n"


def _clock(seconds: float, point: str) -> str:
    total = max(round(seconds * 1000), 0)
    return f"{total // 3_600_000:02}:{total // 60_000 % 60:02}:{total // 1000 % 60:02}{point}{total % 1000:03}"


def cues(found: Transcript) -> list[tuple[float, float, str]]:
    """Subtitles (start, end, text in at most two lines), from the words, or without times of words the segments."""
    if found.words is None:
        return [(s.start, s.end, _wrapped(s.text, " ")) for s in _parts(found.segments)]
    space = "" if (found.language or "").partition("-")[0] in UNSPACED else " "
    shown, group = [], []
    for word in found.words:
        if group and _ends(group, word, space):
            shown.append(group)
            group = []
        group.append(word)
    if group:
        shown.append(group)
    result = []
    for number, words in enumerate(shown):
        start, end = words[0].start, max(words[-1].end, words[0].start + 0.01)
        if number + 1 < len(shown):
            end = min(end, max(shown[number + 1][0].start, start + 0.01))
        result.append((start, end, _wrapped(space.join(word.text for word in words), space)))
    return result


def _ends(group: Sequence[Word], word: Word, space: str) -> bool:
    """Whether a subtitle ends before ``word``."""
    text = space.join(w.text for w in group)
    if word.start - group[-1].end >= PAUSE or word.end - group[0].start > LONGEST:
        return True
    if len(_lines(text + space + word.text, space)) > LINES:
        return True
    return len(text) > LINE // 2 and text[-1] in ".?!。？！…"


def _parts(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Segments that fit a subtitle; the times of a part are in proportion to its characters."""
    for segment in segments:
        lines = _lines(segment.text, " ")
        texts = [" ".join(lines[i : i + LINES]) for i in range(0, len(lines), LINES)]
        total, done = sum(map(len, texts)), 0
        for text in texts:
            begin, end = (segment.start + (segment.end - segment.start) * n / total for n in (done, done + len(text)))
            yield Segment(text, begin, end)
            done += len(text)


def _wrapped(text: str, space: str) -> str:
    """``text`` in lines of similar length."""
    lines = _lines(text, space)
    if len(lines) != LINES or not space:
        return "\n".join(lines)
    words = text.split(space)
    splits = [(space.join(words[:i]), space.join(words[i:])) for i in range(1, len(words))]
    fitting = [pair for pair in splits if max(map(len, pair)) <= LINE]
    return "\n".join(min(fitting, key=lambda pair: abs(len(pair[0]) - len(pair[1]))) if fitting else lines)


def _lines(text: str, space: str) -> list[str]:
    """``text`` in lines of at most ``LINE`` characters, if its words allow."""
    if not space:
        return [text[i : i + LINE // 2] for i in range(0, len(text), LINE // 2)]
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines
