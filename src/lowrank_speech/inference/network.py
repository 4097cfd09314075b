"""Open a named model for inference: its network on a device, its token set, its inputs."""

import bisect
import pickle
import sys
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import RATE, Inputs, inputs_of
from lowrank_speech.inference.naming import Found
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.registry import family_of
from lowrank_speech.models.sources import Source, import_model
from lowrank_speech.models.speech import SpeechModel

DTYPES = {"fp32": torch.float32, "float32": torch.float32, "bf16": torch.bfloat16, "bfloat16": torch.bfloat16}
BROKEN = (SafetensorError, pickle.UnpicklingError, EOFError, OSError, ValueError, RuntimeError)
"""What loading a damaged file raises."""


@dataclass
class Network:
    """A model that is ready to run, as decoders expect it (``decoding.base``: a ``source``).

    lang     token set of a model that recognises speech; None for the others
    asked    the device as the user named it
    """

    found: Found
    model: SpeechModel
    lang: Lang | None
    inputs: Inputs
    device: torch.device
    dtype: torch.dtype
    asked: str = "auto"
    resources: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Any:
        return self.found.folder

    @property
    def task(self) -> str:
        return self.model.task

    @property
    def lang_sha256(self) -> str | None:
        return self.model.meta.lang_sha256

    @cached_property
    def field(self) -> tuple[int, int]:
        """Samples that the encoder needs for its first frame, and samples from one frame to the next."""
        lengths = range(1, 10 * RATE)
        first, second = (
            lengths[bisect.bisect_left(lengths, n, key=lambda m: self.model.frames_of(SimpleNamespace(num_samples=m)))]
            for n in (1, 2)
        )
        return first, second - first

    def input(self, samples: Tensor) -> Tensor:
        """The model's input for samples (T,) at 16 kHz. UserError: they are too few for a frame."""
        if len(samples) < self.field[0]:
            raise UserError(
                f"it has only {len(samples) / RATE:.3f} s, but the model needs at least {self.field[0] / RATE:.3f} s"
            )
        return self.inputs.of(samples)

    def batch(self, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Padded inputs on the model's device, and their lengths (B,)."""
        features = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        lengths = torch.tensor([len(x) for x in inputs], device=self.device)
        return features.to(self.device, self.dtype), lengths


def open_network(found: Found, device: str = "auto", dtype: str | torch.dtype = "fp32") -> Network:
    """Load ``found``. ``device``: auto, cpu or cuda; ``dtype``: fp32 or bf16.

    UserError: the folder is incomplete, or the device or number format is not available.
    """
    place, kind = pick_device(_known(device)), _dtype(dtype)
    if not sys.stderr.isatty():
        disable_progress_bar()
    family = family_of(found.config.get("model_type"), str(found.folder / "config.json"))
    try:
        model = import_model(Source(found.folder, found.revision), family)
    except BROKEN as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{found.folder} cannot be loaded ({said}); copy, download or train the model again") from error
    lang = None
    if model.task == "ctc":
        lang = _ctc_lang(found, model)
    elif model.task == "seq2seq":
        lang = _whisper_lang(found, model)
    model.requires_grad_(False)
    return Network(found, model.to(place, kind).eval(), lang, inputs_of(found.folder), place, kind, device)


def _known(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device is {device!r}; expected one of: auto, cpu, cuda")
    return device


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(str(dtype).lower())
    if found not in (torch.float32, torch.bfloat16):
        raise UserError(f"dtype is {dtype}; expected fp32 or bf16")
    return found


def _ctc_lang(found: Found, model: SpeechModel) -> Lang:
    """The token set of a CTC model; sorts the outputs of ``model`` so that the blank is the first."""
    if found.lang is not None:
        return Lang.load(found.lang)
    from lowrank_speech.inference.folder_tokens import folder_lang

    size = model.head.outputs_of(model.config)
    lang, order = folder_lang(found.folder, size, model.meta.lang_sha256)
    if order != list(range(size)):
        linear = model.head.linear
        with torch.no_grad():
            for parameter in (linear.weight, linear.bias):
                if parameter is not None:
                    parameter.copy_(parameter[order].clone())
    return lang


def _whisper_lang(found: Found, model: SpeechModel) -> Lang:
    """Whisper's own tokens, or those of a base from scratch."""
    if model.meta.lang_sha256 is None:
        return Lang("whisper", None, (), Normaliser(NormaliseConfig()), None)
    if found.lang is None:
        raise UserError(
            f"{found.folder} was trained from scratch, with tokens that are not in its folder; name the system of its "
            f"experiment (exp/mine:base/task/method), whose folder lang has them"
        )
    return Lang.load(found.lang)
