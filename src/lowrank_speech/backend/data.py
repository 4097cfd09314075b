"""Read the scores or embeddings of one or several systems on the same segments, from folders of the stage decode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank_speech.backend.model import arranged
from lowrank_speech.scoring import files

EMBEDDINGS = "embeddings.safetensors"


@dataclass(frozen=True)
class Segments:
    """Segments in the order of the first system's scores. ``languages``: its columns, in their order.

    ``scores``: for each system (n, L), columns as in ``languages``; ``inputs``: the same, or embeddings (n, D).
    ``labels``: id -> language; ``speakers``: id -> speaker, or None if they are not known.
    """

    ids: list[str]
    languages: tuple[str, ...]
    scores: list[np.ndarray]
    inputs: list[np.ndarray]
    labels: Mapping[str, str]
    speakers: Mapping[str, str] | None
    folders: tuple[Path, ...]


def read(folders: Sequence[Path], on: str, languages: Sequence[str] | None = None) -> Segments:
    """Read ``folders``, one for each system. ``languages``: the order of the columns; default: the first system's.

    ValueError: a file is missing or broken, the systems scored other segments or other languages, labels differ, a
    segment has no label, or a value is not finite.
    """
    ids: list[str] = []
    scores, inputs = [], []
    labels: Mapping[str, str] = {}
    for number, folder in enumerate(folders):
        table = folder / "scores.tsv"
        found, columns, values = files.read_scores(table)
        truth = files.read_map(folder / "labels.tsv")
        _check_values(values, found, columns, table)
        if number == 0:
            ids, labels = found, truth
            languages = tuple(columns if languages is None else languages)
            _check_labels(ids, labels, folder)
        else:
            _check_same(ids, found, labels, truth, folders[0], folder)
        rows = {name: row for row, name in enumerate(found)}
        order = [rows[name] for name in ids]
        scores.append(arranged(values, columns, languages, str(table))[order])
        inputs.append(scores[-1] if on == "scores" else _embeddings(folder, len(found))[order])
    speakers = files.read_optional_map(folders[0] / "speakers.tsv")
    return Segments(ids, tuple(languages), scores, inputs, labels, speakers, tuple(folders))


def _check_values(values: np.ndarray, ids: Sequence[str], columns: Sequence[str], table: Path) -> None:
    rows, places = np.nonzero(~np.isfinite(values))
    if len(rows):
        raise ValueError(
            f"{table}: segment {ids[rows[0]]!r}, language {columns[places[0]]!r}: the score is "
            f"{values[rows[0], places[0]]}; a back end needs finite log-likelihoods: correct it, or remove the segment"
        )


def _check_labels(ids: Sequence[str], labels: Mapping[str, str], folder: Path) -> None:
    for left, right, one, other in (
        (ids, labels, "scores.tsv", "labels.tsv"),
        (labels, set(ids), "labels.tsv", "scores.tsv"),
    ):
        if (lacking := next((name for name in left if name not in right), None)) is not None:
            raise ValueError(f"{folder / one}: segment {lacking!r} is not in {folder / other}; add it, or remove it")


def _check_same(
    ids: Sequence[str],
    found: Sequence[str],
    labels: Mapping[str, str],
    truth: Mapping[str, str],
    first: Path,
    folder: Path,
) -> None:
    """Two systems can be fused only on the same segments."""
    if differing := sorted(set(ids) ^ set(found)):
        has, lacks = (first, folder) if differing[0] in set(ids) else (folder, first)
        raise ValueError(
            f"{lacks / 'scores.tsv'}: segment {differing[0]!r} of {has / 'scores.tsv'} is missing ({len(differing)} "
            f"segments differ); fuse systems that scored the same segments"
        )
    for name in ids:
        if truth.get(name) != labels[name]:
            raise ValueError(
                f"{folder / 'labels.tsv'}: segment {name!r} is {truth.get(name)!r}, but {labels[name]!r} in "
                f"{first / 'labels.tsv'}; use the same labels"
            )


def _embeddings(folder: Path, number: int) -> np.ndarray:
    from safetensors.numpy import load_file

    path = folder / EMBEDDINGS
    if not path.is_file():
        raise ValueError(f"{path} does not exist; decode with a decoder of kind embeddings")
    found = load_file(path)["embeddings"].astype(np.float64)
    if len(found) != number:
        raise ValueError(f"{path} has {len(found)} rows, but scores.tsv has {number}; decode again")
    if not np.isfinite(found).all():
        raise ValueError(f"{path}: row {int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])} is not finite")
    return found
