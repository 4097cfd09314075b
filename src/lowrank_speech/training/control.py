"""Train the control mean-logmel: multinomial logistic regression on the mean log-mel of each training utterance.

Every language has the same weight, as in a back end. There is no epoch to choose, so dev is only measured.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowrank_speech.artefact import write_text
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader, segment
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lang.select import SetAside, known_language, labelled, one_supervision, require
from lowrank_speech.models import mean_logmel

log = logging.getLogger(__name__)

INPUTS = Inputs("logmel", n_mels=mean_logmel.BANDS)


def train(config: Any, train_cuts: Path, dev_cuts: Path, out: Path, set_aside: SetAside) -> dict[str, Any]:
    """Fit the control, write ``out``/model and an empty metrics.jsonl, and return its metrics.

    ``config``: the slice of the stage train. UserError: fewer than two languages, or one of the task's has no
    utterance.
    """
    from sklearn.linear_model import LogisticRegression

    task = config.task
    seconds = task.segment.seconds if task.segment else None
    found = list(labelled(_cuts(train_cuts, task, seconds, config.seed, set_aside), set_aside))
    labels = sorted(task.languages or {cut.supervisions[0].language for cut in found})
    found = list(known_language(found, labels, set_aside))
    require(found, f"train: {train_cuts}", set_aside)
    counts = Counter(cut.supervisions[0].language for cut in found)
    lacking = [label for label in labels if not counts[label]]
    if lacking or len(labels) < 2:
        what = f"no utterance in {lacking[0]!r}, one of the task's languages" if lacking else f"only {labels[0]!r}"
        raise UserError(f"train: the training cuts have {what}; language recognition needs at least two languages")
    means, truth = _means(found), np.array([labels.index(cut.supervisions[0].language) for cut in found])
    model = mean_logmel.MeanLogMel(labels)
    mean, scale = means.mean(axis=0), np.maximum(means.std(axis=0), 1e-6)
    fit = LogisticRegression(class_weight="balanced", solver="newton-cg", max_iter=1000)
    fitted = fit.fit((means - mean) / scale, truth)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(labels) == 2:  # scikit-learn has only the difference
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    state = {"mean": mean, "scale": scale, "linear.weight": weight, "linear.bias": bias}
    model.load_state_dict({name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()})
    mean_logmel.save(model, out / "model")
    write_text(out / "metrics.jsonl", "")
    dev = list(known_language(_cuts(dev_cuts, task, seconds, None, set_aside), labels, set_aside))
    require(dev, f"train: {dev_cuts}", set_aside)
    said = fitted.predict((_means(dev) - mean) / scale)
    error = float(np.mean([labels[i] != cut.supervisions[0].language for i, cut in zip(said, dev, strict=True)]))
    log.info("control mean-logmel: %d utterances, dev error %.4f", len(found), error)
    size = model.parameters_total()
    return {
        "adapt": config.adapt,
        "control": config.control,
        "new_head": True,
        "parameters_total": size,
        "parameters_dense": size,
        "parameters_trained": size,
        "dev_metric": error,
        "utterances_train": len(found),
        "utterances_dev": len(dev),
        "seconds_speech": round(sum(cut.duration for cut in found), 3),
        "labels": labels,
    }


def _cuts(path: Path, task: Any, seconds: float | None, seed: int | None, set_aside: SetAside) -> Iterator[Any]:
    cuts = segment(load_cuts(path), seconds, seed)
    if task.channel is not None:
        from lowrank_speech.features.channel import through

        cuts = through(cuts, task.channel, path)
    return one_supervision(mean_logmel.usable(cuts, path), set_aside)


def _means(cuts: list[Any]) -> np.ndarray:
    """Mean log-mel (n, C) of each cut."""
    loader = Loader(INPUTS)
    return np.stack([loader.one(cut).mean(0).numpy() for cut in cuts]).astype(np.float64)
