"""The result of a training: its weights (of the best evaluation, of the last one, or a mean of the last ones), and the
measurements for the manifest.
"""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.evaluate import Dev
from lowrank_speech.training.memory.bytes import byte_counts, peak_bytes
from lowrank_speech.training.state import Parts, State, Weights, changing, copied, put

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """The dev metric of the result, and over how many evaluations its weights are averaged (0: not averaged)."""

    metric: float | None
    averaged: int


def note(state: State, found: Dev, model: nn.Module, config: TrainConfig) -> None:
    """Keep the weights of an evaluation that may become the result."""
    if config.average:
        state.recent = [*state.recent, copied(changing(model))][-config.average :]
    if found.metric < state.best_metric:
        state.best_metric = found.metric
        if config.keep == "best":
            state.best = copied(changing(model))


def out_of_patience(state: State, config: TrainConfig) -> bool:
    """Whether the last ``patience`` evaluations were no better than an earlier one, both of the final ranks."""
    if config.patience is None:
        return False
    final = (row for row in state.history if not row.get("truncations_left"))
    dev = [row["dev_metric"] for row in final if "dev_metric" in row]
    return bool(dev) and len(dev) - 1 - dev.index(min(dev)) >= config.patience


def choose(state: State, model: nn.Module, config: TrainConfig, evaluate: Callable[[], float]) -> Chosen:
    """Load the result into ``model``. ``evaluate()`` returns the dev metric of the model's current weights."""
    if len(state.recent) > 1:
        put(mean(state.recent), model)
        found = evaluate()
        taken = config.keep == "last" or found <= state.best_metric
        log.info(
            "mean of the weights of the last %d evaluations: dev error %.4f; %s",
            *(len(state.recent), found, "used" if taken else f"the best epoch's {state.best_metric:.4f} is better"),
        )
        if taken:
            return Chosen(found, len(state.recent))
    if config.keep == "last":
        return Chosen(state.history[-1].get("dev_metric"), 0)
    if state.best is not None:
        put(state.best, model)
    return Chosen(state.best_metric, 0)


def mean(states: Sequence[Weights]) -> Weights:
    """Means of the tensors, summed in float64 and returned in their own dtype; integers come from the last state."""
    result = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum(state[name].double() for state in states)
            result[name] = (total / len(states)).to(last.dtype)
        else:
            result[name] = last.clone()
    return result


def watch_blank(state: State, found: Dev, step: int, config: TrainConfig) -> None:
    """Warn if CTC's output for dev is only blank. Raises UserError after ``blank_patience`` evaluations in a row."""
    if found.blank != 1.0 or not math.isfinite(found.loss):
        state.blank_evaluations = 0
        return
    state.blank_evaluations += 1
    advice = "train longer (epochs), warm up longer (warmup), raise head_lr or lower lr"
    log.warning("step %d: CTC's output for dev is only blank; if this continues, %s", step, advice)
    if state.blank_evaluations >= (config.blank_patience or math.inf):
        raise UserError(
            f"step {step}: CTC's output for dev was only blank in {state.blank_evaluations} evaluations in a row "
            f"(blank_patience); {advice}"
        )


class Outcome(NamedTuple):
    """The measurements of a run: ``metrics``, which are the same in equal runs, and ``cost`` (time and memory)."""

    metrics: dict[str, Any]
    cost: dict[str, Any]


def outcome(chosen: Chosen, state: State, parts: Parts, deviation: float | None, activations: int | None) -> Outcome:
    """The measurements of a finished run; also writes a log line.

    ``deviation``: of the constrained factors from semi-orthogonality; ``activations``: bytes, from the dry run.
    """
    ctc, stepper = parts.objective.backend, parts.stepper
    metrics = {
        "parameters_trained": sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        "steps": stepper.steps,
        "epochs": state.epoch,
        "steps_skipped": stepper.skipped,
        "dev_metric": chosen.metric,
        "averaged": chosen.averaged,
        "deviation": deviation,
        "ctc": ctc and {"backend": ctc.backend, "version": ctc.version},
        "ctc_impossible": state.history[-1].get("ctc_impossible"),
    }
    held = byte_counts((parts.model, parts.objective), stepper.optimiser)
    cost = {
        "bytes": held | {"activations": activations},
        "seconds_train": round(state.seconds, 3),
        "speech_seconds_per_second": round(state.speech / max(state.seconds, 1e-9), 3),
        # A run that was continued has used more than one process; the state holds the peak of the earlier ones.
        "peak_bytes": max(state.peak_bytes, peak_bytes(parts.device)),
        "device": str(parts.device),
    }
    log.info(
        "%d parameters trained; %.1f MB of weights, %.1f MB of gradients, %.1f MB of optimiser state, %.1f MB peak "
        "memory; %.1f s of speech per second",
        *(metrics["parameters_trained"], *(n / 1e6 for n in held.values())),
        *(cost["peak_bytes"] / 1e6, cost["speech_seconds_per_second"]),
    )
    return Outcome(metrics, cost)
