"""Setting up an adaptation: the task's model and data, what trains, and the adapters."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.features.kept import KeptCuts
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import SetAside
from lowrank_speech.lowrank.lora import LoraSettings, add_lora
from lowrank_speech.models.families import layer_patterns, lora_targets
from lowrank_speech.models.folder import to_task
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.text import decoder_tokens
from lowrank_speech.training.data.prepared import prepared
from lowrank_speech.training.data.splits import Split, Usable, language_cuts, recognition_cuts
from lowrank_speech.training.process.distributed import Ranks

log = logging.getLogger(__name__)


@dataclass
class Setup:
    """A task's model and the data that it can use."""

    model: SpeechModel
    new_head: bool
    train: KeptCuts
    dev: KeptCuts
    lang: Lang | None = None
    tokens: Any = None
    labels: list[str] = field(default_factory=list)


def prepare(base: SpeechModel, arguments: Any, config: Any, key: str, set_aside: SetAside, ranks: Ranks) -> Setup:
    """The model of ``config.task`` on ``base``, and its training and dev cuts; unusable ones go to ``set_aside``.

    The cuts that can be used are written to ``arguments.scratch`` in one pass and read from there; a run with an equal
    ``key`` finds them there. Of several processes the first one goes through the cuts, and it alone knows what is set
    aside.
    """
    splits = (
        Split("the training cuts", arguments.train_cuts, config.training, config.task.segment, config.seed),
        Split("the dev cuts", arguments.dev_cuts, None, config.task.segment),
    )

    def usable_of(make: Callable[..., Usable]) -> Usable:
        return ranks.from_first(partial(prepared, arguments.scratch, key, make, set_aside))

    if config.task.type == "lid":
        usable = usable_of(partial(language_cuts, splits, base, config.task.languages))
        labels = usable.labels
        model, new = to_task(base, "classify", len(labels), labels, seed=config.seed)
        # The classifier learns posteriors under these priors; decoding divides them out again.
        model.meta.priors = [usable.languages.counts[label] / len(usable.train) for label in labels]
        return Setup(model, new, usable.train, usable.dev, labels=labels)
    lang, ctc = Lang.load(arguments.lang), base.recognises_by == "ctc"
    if ctc and lang.tokens is None:
        raise UserError("train: CTC needs a token set of kind char or sentencepiece, not Whisper's own tokenizer")
    usable = usable_of(partial(recognition_cuts, splits, base, lang, ctc))
    labels = usable.languages.spoken() if config.training.language_weight else []
    if ctc:
        model, new = to_task(base, "ctc", lang.tokens.size, lang_sha256=lang.sha256, seed=config.seed)
        tokens = lang.tokens
    else:
        model, new = to_task(base, "seq2seq", None)
        tokens = decoder_tokens(model, arguments.model, lang)
    return Setup(model, new, usable.train, usable.dev, lang=lang, tokens=tokens, labels=labels)


def freeze_for(model: SpeechModel, adapt: str, trains_head: bool) -> None:
    """Set ``requires_grad``: everything for ``full`` (front end and constants apart), else the head at most."""
    fixed = {id(p) for p in model.front_end()}
    for name, parameter in model.hf.named_parameters():
        is_head = any(name.startswith(f"{head}.") for head in model.head_names)
        constant = id(parameter) in fixed or name.endswith("encoder.embed_positions.weight")
        parameter.requires_grad_(trains_head if is_head else adapt == "full" and not constant)


def lora_on(model: SpeechModel, settings: Any) -> Any:
    """LoRA adapters on ``model.hf`` (in place); the head trains along. Returns the peft model."""
    if settings is None:
        raise UserError("adapt: lora needs the section `lora`")
    patterns = layer_patterns(model.family, settings.targets) if settings.targets else lora_targets(model.family)
    head = [p for name, p in model.hf.named_parameters() if name.split(".")[0] in model.head_names]
    try:
        peft_model, report = add_lora(
            model.hf,
            LoraSettings(
                rank=settings.rank,
                alpha=settings.alpha,
                dropout=settings.dropout,
                targets=tuple(patterns),
                where=settings.where,
                rslora=settings.rslora,
                dora=settings.dora,
                init=settings.init,
            ),
        )
    except ValueError as error:
        raise UserError(f"lora: {error}") from error
    for parameter in head:  # peft freezes all that is not an adapter
        parameter.requires_grad_(True)
    log.info("LoRA: %s", report)
    return peft_model
