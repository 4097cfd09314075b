"""A trained back end: language scores (or embeddings) of one or several systems -> calibrated log-likelihoods.

All kinds are affine: with x_k the input of system k, l = sum_k W_k x_k + b. The file is backend.json, the manifest of
the stage backend, of which ``metrics.backend`` has

    kind       temperature, affine, gaussian or fusion
    on         scores, or embeddings
    languages  the L rows of the weights, in the order of the calibrated scores
    inputs     for each system its name (system) and its D columns: languages, or the number of dimensions
    weights    for each system (L, D), and ``offsets`` (L,); null if they are in backend.safetensors beside the file

    backend = Backend.load("backend.json")
    calibrated = backend.apply(scores)      # (n, L); columns in the order of backend.languages

Imports NumPy only (safetensors where the weights are large).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INLINE = 10_000
"""A model with more numbers keeps them in ``TENSORS``."""
TENSORS = "backend.safetensors"
STAGE = "backend"


@dataclass(frozen=True)
class Input:
    """What a back end reads of one system: ``columns`` are its languages, or the dimensions of its embeddings."""

    system: str
    columns: tuple[str, ...] | int

    @property
    def size(self) -> int:
        return self.columns if isinstance(self.columns, int) else len(self.columns)


@dataclass(frozen=True)
class Backend:
    """A trained back end; see the module's docstring. ``weights``: for each input (L, D) float64; ``offsets``: (L,)."""

    kind: str
    on: str
    languages: tuple[str, ...]
    inputs: tuple[Input, ...]
    weights: tuple[np.ndarray, ...]
    offsets: np.ndarray

    @classmethod
    def load(cls, file: str | Path) -> "Backend":
        """Read a backend.json. ValueError, in one line: the file does not exist or is not a back end."""
        file = Path(file)
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["stage"] != STAGE:
                raise ValueError(f"it is of the stage {record['stage']}")
            found = record["metrics"]["backend"]
            inputs = tuple(Input(i["system"], _columns(i["columns"])) for i in found["inputs"])
            if found["weights"] is None:
                from safetensors.numpy import load_file

                tensors = load_file(file.with_name(TENSORS))
                weights = [tensors[f"weights.{k}"] for k in range(len(inputs))]
            else:
                weights = [np.array(one, dtype=np.float64) for one in found["weights"]]
            languages, offsets = tuple(found["languages"]), np.array(found["offsets"], dtype=np.float64)
            shapes = [(len(languages), one.size) for one in inputs]
            if [w.shape for w in weights] != shapes or offsets.shape != (len(languages),):
                raise ValueError("its weights do not fit its languages")
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename}: the file does not exist; check the path") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise ValueError(f"{file}: not a back end ({said}); give a backend.json of the stage backend") from error
        return cls(found["kind"], found["on"], languages, inputs, tuple(weights), offsets)

    def as_json(self, large: bool | None = None) -> dict[str, Any]:
        """The value of ``metrics.backend``; without the weights if they are ``large`` (see ``tensors``)."""
        large = self.large if large is None else large
        return {
            "kind": self.kind,
            "on": self.on,
            "languages": list(self.languages),
            "inputs": [
                {"system": i.system, "columns": i.columns if isinstance(i.columns, int) else list(i.columns)}
                for i in self.inputs
            ],
            "weights": None if large else [one.tolist() for one in self.weights],
            "offsets": self.offsets.tolist(),
        }

    @property
    def large(self) -> bool:
        """Whether the weights belong into a file of their own."""
        return sum(one.size for one in self.weights) > INLINE

    def tensors(self) -> dict[str, np.ndarray]:
        """The content of ``TENSORS``."""
        return {f"weights.{k}": np.ascontiguousarray(one) for k, one in enumerate(self.weights)}

    def apply(self, *inputs: np.ndarray) -> np.ndarray:
        """Calibrated log-likelihoods (n, L) of n segments, natural logarithm; exp of a row sums to 1.

        So exp gives the posteriors for equal priors. ``inputs``: for each system its scores or embeddings (n, D), with
        the columns in the order of ``self.inputs``. ValueError: another shape, or a value that is not finite.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the back end fuses {len(self.inputs)} systems; got the scores of {len(inputs)}")
        total = self.offsets[None, :]
        for one, known, weights in zip(inputs, self.inputs, self.weights, strict=True):
            one = np.asarray(one, dtype=np.float64)
            if one.ndim != 2 or one.shape[1] != known.size:
                raise ValueError(
                    f"the back end reads {known.size} columns of {known.system}; got an array of {one.shape}"
                )
            wrong = np.flatnonzero(~np.isfinite(one).all(axis=1))
            if len(wrong):
                raise ValueError(f"row {wrong[0]} of the {self.on} of {known.system} has a value that is not finite")
            total = total + one @ weights.T
        return total - log_sum_exp(total)


def log_sum_exp(rows: np.ndarray) -> np.ndarray:
    """log sum exp of each row, (n, 1)."""
    top = rows.max(axis=1, keepdims=True)
    return top + np.log(np.exp(rows - top).sum(axis=1, keepdims=True))


def arranged(scores: np.ndarray, columns: Sequence[str], languages: Sequence[str], where: str) -> np.ndarray:
    """``scores`` (n, D) with the ``columns`` in the order of ``languages``. ValueError: they have other names."""
    if set(columns) != set(languages) or len(columns) != len(languages):
        lacking, extra = sorted(set(languages) - set(columns)), sorted(set(columns) - set(languages))
        said = f"has no column {lacking[0]!r}" if lacking else f"has the column {extra[0]!r}"
        raise ValueError(
            f"{where} {said}, but the back end is for {', '.join(languages)}; use scores of these languages"
        )
    place = {name: i for i, name in enumerate(columns)}
    return scores[:, [place[name] for name in languages]]


def _columns(value: Any) -> tuple[str, ...] | int:
    return value if isinstance(value, int) else tuple(value)
