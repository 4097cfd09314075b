"""Gradient checkpointing and ``torch.compile`` for the layers of encoder and decoder."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel


def encoder_and_decoder_layers(model: SpeechModel) -> list[nn.Module]:
    """The transformer (or conformer) layers of the model's body, in order."""
    lists = [m for name, m in model.body.named_modules() if name.endswith("coder.layers")]
    return [layer for layers in lists for layer in layers]


def checkpoint_layers(model: SpeechModel) -> None:
    """Recompute each layer's activations in the backward pass instead of keeping them, while the model trains.

    Uses transformers' own switch in its non-reentrant form, which also works if a layer's input needs no gradient, as
    with LoRA and a frozen front end. Leaves out the front end, which keeps no activations when it is frozen. Raises
    UserError if a class does not support it.
    """
    hf = model.hf
    if not hf.supports_gradient_checkpointing:
        raise UserError(f"training.gradient_checkpointing: {type(hf).__name__} of transformers does not support it")
    # Older releases of transformers 5 only know the second name.
    enable = getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    chosen = set(encoder_and_decoder_layers(model))
    for module in hf.modules():
        if getattr(module, "gradient_checkpointing", False) and module not in chosen:
            module.gradient_checkpointing = False


def compile_layers(model: SpeechModel, static: bool = False, backend: str | Callable = "inductor") -> None:
    """Compile each layer at its first use (torch.compile), once for all lengths and batch sizes.

    With ``static``, encoder layers are compiled for each length in ``model.buckets`` instead, and the compiled ones are
    only used in training. Raises UserError without a C++ compiler.
    """
    if not torch.cuda.is_available():
        wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(map(shutil.which, wanted)):
            raise UserError(
                f"training.compile: torch.compile needs a C++ compiler, but {' and '.join(wanted)} "
                f"{'were' if len(wanted) > 1 else 'was'} not found; install one, or set compile: false"
            )
    # By default torch gives up after 8 graphs, but layers with different adapters or frozen weights need one each.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
    encoder = {id(m) for name, m in model.body.named_modules() if "decoder" not in name.split(".")}
    for layer in encoder_and_decoder_layers(model):
        if static and id(layer) in encoder:
            layer._compiled_call_impl = _for_each_length(layer, backend)
        else:
            layer.compile(dynamic=True, backend=backend)


def _for_each_length(layer: nn.Module, backend: str | Callable) -> Callable:
    compiled = torch.compile(layer._call_impl, backend=backend)

    def call(*args: Any, **kwargs: Any) -> Any:
        if not layer.training:  # dev batches have other lengths
            return layer._call_impl(*args, **kwargs)
        for tensor in (*args, *kwargs.values()):
            if isinstance(tensor, torch.Tensor) and tensor.dim():
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
                for dim in range(1, tensor.dim()):
                    torch._dynamo.mark_static(tensor, dim)
        return compiled(*args, **kwargs)

    return call


def length_buckets(seconds: Sequence[float] | np.ndarray, number: int, rate: float) -> tuple[int, ...]:
    """At most ``number`` lengths to which batches are padded, in frames at ``rate`` Hz, in ascending order.

    Each bucket gets an equal share of the speech; the longest utterance fits the last one.
    """
    ordered = np.sort(seconds)
    last = np.searchsorted(ordered, bucket_bounds(ordered, number)) - 1
    ends = ordered[np.append(last[last >= 0], -1)]
    # A front end's last frame may cover a little more than the recording.
    return tuple(sorted({math.ceil(s * rate) + 1 for s in ends.tolist()}))


def bucket_bounds(durations: np.ndarray, number: int) -> list[float]:
    """The lower bounds in seconds of at most ``number`` buckets except the first one, in ascending order.

    Each bucket holds an equal share of the speech, as in lhotse's estimate_duration_buckets: it ends when it has more.
    """
    ordered, bounds, begin = np.sort(durations), [], 0.0
    total = np.cumsum(ordered)
    share = total[-1] / number
    while (last := int(np.searchsorted(total, begin + share, side="right"))) + 1 < len(ordered):
        bounds.append(float(ordered[last + 1]))
        begin = total[last]
    return bounds


@contextlib.contextmanager
def compiling(enabled: bool) -> Iterator[None]:
    """Turn a compiler error into one line. Layers are compiled at their first use, which may be inside."""
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"training.compile: torch.compile fails here ({first}); set compile: false") from error


def as_before(model: SpeechModel) -> None:
    """Undo checkpointing and compilation, and remove buckets and masks."""
    model.buckets, model.mask = (), None
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
        module._compiled_call_impl = None
