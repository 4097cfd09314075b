"""Store and load the CTC log probabilities of a test set, which several decoders share.

A folder of the stage emissions has

    emissions.h5      an array (F, V) for each utterance, under its id: natural-log probabilities, symbol 0 is blank
    frames.tsv        id, frames, seconds (of speech): the contents of emissions.h5
    set_aside.tsv     id, reason, detail: utterances that the network cannot process
    emissions.json    the manifest; its metrics identify the symbols

float32 is lossless. float16 halves the size; at a log probability of -10 its error is up to 0.004.

F frames, V vocabulary.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lhotse import NumpyHdf5Writer

from lowrank_speech.artefact import atomic, read_manifest, write_table
from lowrank_speech.errors import UserError

ARRAYS, FRAMES, ASIDE, MANIFEST = "emissions.h5", "frames.tsv", "set_aside.tsv", "emissions.json"
Dtype = Literal["float32", "float16"]


def write(folder: Path, rows: Iterable[tuple[str, float, np.ndarray]], dtype: Dtype) -> dict[str, int]:
    """Store (id, seconds of speech, log probabilities (F, V)) of every utterance; return counts for the manifest."""
    listed, symbols = [], 0
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / ARRAYS) as temporary, NumpyHdf5Writer(temporary) as writer:
        for name, seconds, array in rows:
            writer.write(name, array.astype(dtype))
            symbols = array.shape[1]
            listed.append((name, len(array), f"{seconds:.3f}"))
    write_table(folder / FRAMES, ("id", "frames", "seconds"), sorted(listed))
    return {"utterances": len(listed), "frames": sum(frames for _, frames, _ in listed), "symbols": symbols}


class Emissions:
    """The emissions in a folder: ``emissions[id]`` is (F, V) float32.

    ``task``, ``lang_sha256``: task and token set of the model that computed them. ``set_aside``: id -> reason, detail.
    UserError: the folder was not made by the stage emissions, or an array cannot be read.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{self.folder} has no {MANIFEST}; give a folder that the stage emissions made")
        try:
            record = read_manifest(path, "emissions")
            metrics = record["metrics"]
            self.task, self.lang_sha256 = metrics["task"], metrics["lang_sha256"]
            self._frames = {row["id"]: int(row["frames"]) for row in _rows(self.folder / FRAMES)}
            rows = _rows(self.folder / ASIDE)
            self.set_aside = {row["id"]: (row["reason"], row["detail"]) for row in rows}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} or a table beside it is not valid ({error}); run the stage again") from error
        self._file: Any = None

    def __contains__(self, name: str) -> bool:
        return name in self._frames

    def __getitem__(self, name: str) -> np.ndarray:
        import h5py

        path = self.folder / ARRAYS
        try:
            self._file = self._file or h5py.File(path, "r")
            array = np.asarray(self._file[name], dtype=np.float32)
            if len(array) != self._frames[name]:
                raise ValueError(f"{len(array)} frames, but {FRAMES} says {self._frames[name]}")
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"utterance {name}: its emissions in {path} cannot be read ({reason}); run the stage emissions again"
            ) from error
        return array


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
