"""Report running out of memory in one line that names the batch and says which settings to lower."""

import contextlib
from collections.abc import Iterator
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import TrainConfig

_SIGNS = ("out of memory", "not enough memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate")


@contextlib.contextmanager
def explained(batch: dict[str, Any] | None, config: TrainConfig) -> Iterator[None]:
    """Turn a failed allocation into a UserError that names the batch (None: the model) and says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        if batch is None:
            raise UserError(
                "out of memory before the first batch: the model itself does not fit; use a smaller base, or adapt: "
                "lora with frozen_dtype: bf16 (and precision: bf16)"
            ) from error
        raise UserError(f"out of memory on {described(batch['cuts'])}: {_advice(config, batch['cuts'])}") from error


def padded_seconds(cuts: list[Any]) -> float:
    """Seconds of a batch of ``cuts``, including padding."""
    return max(cut.duration for cut in cuts) * len(cuts)


def described(cuts: list[Any]) -> str:
    """Describe a batch for a message: its utterances, its seconds with padding, its longest utterance."""
    longest = max(cuts, key=lambda cut: cut.duration)
    return (
        f"a batch of {len(cuts)} utterance{'s' * (len(cuts) > 1)}, {padded_seconds(cuts):.1f} s with padding (longest: "
        f"{longest.id}, {longest.duration:.1f} s)"
    )


def _advice(config: TrainConfig, cuts: list[Any]) -> str:
    if len(cuts) > 1:
        todo = [f"lower training.batch_seconds (now {config.batch_seconds:g}; `accumulate` makes up for it)"]
    else:
        todo = ["leave out utterances of that length (max_seconds of the corpus), or cut them (lid: segment)"]
    if not config.gradient_checkpointing:
        todo.append("set gradient_checkpointing: true")
    if config.precision == "fp32":
        todo.append("set precision: bf16")
        todo[-1] += " (with adapt: lora, frozen_dtype: bf16 too)"
    elif config.frozen_dtype == "fp32":
        todo.append(f"set frozen_dtype: {config.precision} (with adapt: lora)")
    return ", or ".join(todo)
