"""Turn a base into a model for a task: the same pretrained body with another head."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.models.build import assign, drawn, quiet_config, skeleton, stored
from lowrank_speech.models.heads.registry import DEFAULT, head_class
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def body_state(model: SpeechModel) -> tuple[dict[str, Tensor], dict[str, int]]:
    """State and plan of only the pretrained body, with names relative to it."""
    return dict(model.body.state_dict()), dict(model.plan or {})


def to_task(
    model: SpeechModel,
    task: str,
    outputs: int | None,
    labels: Sequence[str] = (),
    lang_sha256: str | None = None,
    seed: int = 0,
    head: Any = None,
    head_plan: Mapping[str, int] | None = None,
) -> tuple[SpeechModel, bool]:
    """Put another task's head on the same pretrained body; also returns whether the head is new (from ``seed``).

    ``outputs``: size of a CTC vocabulary or number of classes (None for seq2seq). ``head``: settings of the head
    (``models.heads``), by default those of the task's default head; ``head_plan``: name (relative to the head) -> rank
    of its layers that are factors. A CTC model keeps its own head if its outputs stand for the same token table
    (``lang_sha256``) and the settings are the same. A Whisper classifier uses only the encoder, unless the decoder is
    the head. Weights are shared with ``model``. Raises UserError if the body does not support the task.
    """
    if model.task == task and task == "seq2seq":
        return model, False
    if task == "seq2seq":
        raise UserError(f"a {model.family} model with the task {model.task!r} cannot be turned into seq2seq")
    if model.task == task == "ctc" and model.meta.lang_sha256 == lang_sha256 and head in (None, model.head.settings):
        return model, False
    model.check(task, model.config)
    if model.head is not None:
        log.warning(
            "replacing the base's head (%s, %d outputs): %s; the new head has %d outputs",
            model.head.KIND, model.head.outputs_of(model.config),
            f"it is for {model.task}" if model.task != task else "its outputs stand for other symbols or classes",
            outputs,
        )  # fmt: skip
    config = quiet_config(type(model.config).from_dict(model.config.to_dict()))
    kind = head_class(DEFAULT[task] if head is None else head.kind)
    settings = kind.settings_of(config) if head is None else head
    kind.configure(config, settings, outputs, labels)
    if kind.DECODER and not model.decodes:
        raise UserError(
            f"head: {kind.KIND} uses the decoder, but the base is a {model.family} model without one; use a Whisper "
            f"with its decoder as the base, or another head"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = skeleton(task, config, head=settings)
        with torch.device("meta"):
            new.factorised_head(head_plan)
        new.head = drawn(new.head, config)
    state, plan = body_state(model)
    names = {name for name, _ in new.body.named_modules()}
    plan = {name: rank for name, rank in plan.items() if name in names}
    with torch.device("meta"):
        new.factorised(plan, model.meta.exact)
    if model.meta.target:
        new.meta.target = {name: rank for name, rank in model.meta.target.items() if name in names}
    new.meta.labels, new.meta.lang_sha256 = list(labels), lang_sha256
    if kind.DECODER:
        full = {name: model.state_dict()[name] for name in stored(model) if not model.is_head(name)}
        new.hf.generation_config = model.hf.generation_config
    else:
        wanted = new.body.state_dict().keys()
        full = {f"hf.{name}": tensor for name, tensor in state.items() if name in wanted}
    assign(new, full | {f"head.{name}": tensor for name, tensor in new.head.state_dict().items()}, "the base")
    return new.eval(), new.parameters_head() > 0
