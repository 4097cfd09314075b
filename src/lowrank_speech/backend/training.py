"""Train a back end on dev segments, and measure it there."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_speech.backend import registry
from lowrank_speech.backend.data import Segments
from lowrank_speech.backend.model import Backend, Input
from lowrank_speech.scoring import cllr


def train(settings: Any, data: Segments, systems: Sequence[str], least: int) -> tuple[Backend, dict[str, Any]]:
    """The back end of ``settings``, and facts for the manifest: Cllr and accuracy on dev before and after, a warning.

    ``data``: dev segments of ``systems``; ``least``: how many each language needs. ValueError: there are fewer, or only
    one language, or a label that the systems do not score.
    """
    truth = checked(data, least)
    on, number = getattr(settings, "on", "scores"), len(data.languages)
    fitted = registry.module(settings.kind).fit(data.inputs, truth, number, settings)
    columns = [data.languages if on == "scores" else one.shape[1] for one in data.inputs]
    inputs = tuple(Input(name, one) for name, one in zip(systems, columns, strict=True))
    backend = Backend(settings.kind, on, data.languages, inputs, fitted.weights, fitted.offsets)
    after = backend.apply(*data.inputs)
    facts = dict(fitted.facts)
    facts["segments"] = len(truth)
    facts["by_language"] = {name: int(n) for name, n in zip(data.languages, np.bincount(truth), strict=True)}
    facts["before"] = measured(data.scores[0], truth) if len(data.scores) == 1 else {"cllr": None, "accuracy": None}
    facts["after"] = measured(after, truth)
    facts["warning"] = None
    if facts["after"]["accuracy"] == 1.0 and settings.kind != "gaussian":
        facts["warning"] = (
            f"all {len(truth)} dev segments are recognised, so they do not show how confident the scores should be; "
            f"only the key ridge ({settings.ridge:g}) limits the scale: use more, or harder, dev segments"
        )
    return backend, facts


def checked(data: Segments, least: int) -> np.ndarray:
    """The column (n,) of each segment's language. ValueError: dev does not suffice; see ``train``."""
    table, column = data.folders[0] / "labels.tsv", {name: i for i, name in enumerate(data.languages)}
    for name in data.ids:
        if data.labels[name] not in column:
            raise ValueError(
                f"{table}: segment {name!r} is {data.labels[name]!r}, which the system does not score; expected one "
                f"of: {', '.join(data.languages)}"
            )
    counts = Counter(data.labels[name] for name in data.ids)
    if len(counts) == 1:
        raise ValueError(
            f"{table}: all {len(data.ids)} dev segments are {next(iter(counts))!r}; a back end needs dev segments of "
            f"every language: {', '.join(data.languages)}"
        )
    for language in data.languages:
        if counts[language] < least:
            raise ValueError(
                f"{table}: dev has {counts[language]} of at least {least} segments of {language!r} that a back end "
                f"needs (`least`): add dev speech, or remove the back end"
            )
    return np.array([column[data.labels[name]] for name in data.ids])


def measured(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Cllr in bits, and the macro accuracy."""
    sizes = np.bincount(truth)
    lost = np.bincount(truth, weights=cllr.log_loss(scores, truth)) / sizes
    right = np.bincount(truth, weights=scores.argmax(axis=1) == truth) / sizes
    return {"cllr": float(lost.mean()), "accuracy": float(right.mean())}
