"""What is done to the layers of encoder and decoder for a training: gradient checkpointing, ``torch.compile``."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel


def encoder_and_decoder_layers(model: SpeechModel) -> list[nn.Module]:
    """The transformer (or conformer) layers of the model's body, in their order."""
    lists = [m for name, m in model.body.named_modules() if name.endswith("coder.layers")]
    return [layer for layers in lists for layer in layers]


def checkpoint_layers(model: SpeechModel) -> None:
    """Compute each layer's activations again in the backward pass in place of keeping them, while the model trains.

    By transformers' own switch; not reentrant, so that it works where a layer's input needs no gradient, as with LoRA
    and a frozen front end. The front end is left out: frozen, it keeps nothing. UserError where a class cannot.
    """
    hf = model.hf
    if not hf.supports_gradient_checkpointing:
        raise UserError(f"training.gradient_checkpointing: {type(hf).__name__} of transformers does not support it")
    # Older releases of transformers 5 know the second name alone.
    enable = getattr(hf, "activation_checkpointing_enable", None) or hf.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    chosen = set(encoder_and_decoder_layers(model))
    for module in hf.modules():
        if getattr(module, "gradient_checkpointing", False) and module not in chosen:
            module.gradient_checkpointing = False


def compile_layers(model: SpeechModel) -> None:
    """Have each layer compiled at its first use, for any length (torch.compile). UserError without a C++ compiler."""
    if not torch.cuda.is_available():
        wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
        if not any(map(shutil.which, wanted)):
            raise UserError(
                f"training.compile: torch.compile needs a C++ compiler, and {' and '.join(wanted)} "
                f"{'are' if len(wanted) > 1 else 'is'} not to be found: install one, or set compile: false"
            )
    for layer in encoder_and_decoder_layers(model):
        layer.compile(dynamic=True)


@contextlib.contextmanager
def compiling(enabled: bool) -> Iterator[None]:
    """Layers are compiled at their first use, which may be inside: turn what fails there into one line."""
    if not enabled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"training.compile: torch.compile fails here ({first}): set compile: false") from error


def as_before(model: SpeechModel) -> None:
    """Undo both."""
    for module in model.hf.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.gradient_checkpointing = False
        module._compiled_call_impl = None
