"""Registry of decoders: kind and task of the model -> module. A new decoder is one file, and one case here.

A name may stand for one decoder per model task: ``greedy`` is the best path on CTC models, and greedy search on
Whisper. Neither the registry nor the modules import anything heavy, because the config check reads the settings of the
decoders before the first job.

    >>> module("greedy", "ctc").Settings(batch_seconds=20)
    Settings(batch_seconds=20.0, kind='greedy')

The cases are import statements instead of importlib calls because the code hash follows import statements.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.settings import read
from lowrank_speech.settings_errors import nearest

FOLDERS = {"ctc": "ctc", "seq2seq": "whisper", "classify": "language"}
"""Task of a model -> folder of its decoders."""
TYPES = {"ctc": "asr", "seq2seq": "asr", "classify": "lid"}
"""Task of a model -> type of the task in the config."""
DEFAULT = {"asr": "greedy", "lid": "scores"}
"""Type of a task -> default kind of decoder."""


def _listed(kind: str, task: str) -> ModuleType | None:
    match f"{FOLDERS[task]}/{kind}":
        case "ctc/greedy":
            from lowrank_speech.decoding.ctc import greedy as found
        case "ctc/beam":
            from lowrank_speech.decoding.ctc import beam as found
        case "ctc/align":
            from lowrank_speech.decoding.ctc import align as found
        case "ctc/hlg":
            from lowrank_speech.decoding.ctc import hlg as found
        case "ctc/nbest":
            from lowrank_speech.decoding.ctc import nbest as found
        case "ctc/rescore":
            from lowrank_speech.decoding.ctc import rescore as found
        case "whisper/greedy":
            from lowrank_speech.decoding.whisper import greedy as found
        case "whisper/beam":
            from lowrank_speech.decoding.whisper import beam as found
        case "language/scores":
            from lowrank_speech.decoding.language import scores as found
        case "language/embeddings":
            from lowrank_speech.decoding.language import embeddings as found
        case _:
            found = None
    return found


@dataclass(frozen=True)
class Kind:
    """A kind of decoder for models of one task.

    name      ``kind`` in the config
    task      task of its models: ctc, seq2seq, classify
    type      type of its tasks in the config: asr, lid
    reads     ``model``: the decoder runs the model; ``emissions``: it reads the output of the stage emissions
    settings  its settings class
    """

    name: str
    task: str
    type: str
    reads: str
    settings: type


def kinds(type: str | None = None, task: str | None = None) -> list[Kind]:
    """All kinds, or those for a ``type`` of task (asr, lid) or for models of a ``task`` (ctc, seq2seq, classify)."""
    result = []
    for served, folder in FOLDERS.items():
        if task not in (None, served) or type not in (None, TYPES[served]):
            continue
        for file in sorted((Path(__file__).parent / folder).glob("*.py")):
            # The folders also contain files that several kinds share.
            if (found := _listed(file.stem, served)) is not None:
                result.append(Kind(file.stem, served, TYPES[served], found.READS, found.Settings))
    return result


def module(kind: str, task: str) -> ModuleType:
    """Import and return the module of a kind for models of a task. UserError: there is no such decoder."""
    found = _listed(kind, task)
    if found is None:
        known = _expected(kinds(task=task), kind)
        raise UserError(f"decoder: the kind {kind!r} does not decode {task} models; {known}")
    return found


def check(type: str, decoder: Mapping[str, Any]) -> None:
    """Check the section ``decoder`` for tasks of ``type``, before the model is known.

    ValueError: unknown kind, or keys that no decoder of that kind accepts.
    """
    kind = decoder.get("kind", DEFAULT[type])
    served = [known for known in kinds(type) if known.name == kind]
    if not served:
        what = {"asr": "speech recognition", "lid": "language recognition"}[type]
        raise ValueError(f"decoder.kind: {kind!r} does not decode {what}; {_expected(kinds(type), str(kind))}")
    problems = []
    for known in served:
        try:
            read(known.settings, {"kind": kind, **decoder}, "decoder")
            return
        except UserError as error:
            problems.append(str(error))
    # A decoder for models of another task may lack a given key; the last problem is the most informative.
    raise ValueError(problems[-1])


def _expected(known: list[Kind], kind: str) -> str:
    names = list(dict.fromkeys(other.name for other in known))
    return f"expected one of: {', '.join(names)}{nearest(kind, names)}"
