"""Setting up an adaptation: the task's model and data, what trains, and the adapters."""

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lhotse import CutSet

from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import segment
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import SetAside, fits_window, known_language, possible_ctc, require, spoken, usable_text
from lowrank_speech.lowrank.lora import LoraSettings, add_lora
from lowrank_speech.models.families import layer_patterns, lora_targets
from lowrank_speech.models.folder import to_task
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.text import decoder_tokens

log = logging.getLogger(__name__)


@dataclass
class Setup:
    """A task's model and the data that it can use."""

    model: SpeechModel
    new_head: bool
    train: CutSet
    dev: CutSet
    lang: Lang | None = None
    tokens: Any = None
    labels: list[str] = field(default_factory=list)


def prepare(base: SpeechModel, arguments: Any, config: Any, set_aside: SetAside) -> Setup:
    """The model of ``config.task`` on ``base``, and its training and dev cuts; unusable ones go to ``set_aside``."""
    seconds = config.task.segment.seconds if config.task.segment else None
    limit = base.window_seconds
    train = fits_window(segment(load_cuts(arguments.train_cuts), seconds, config.seed), limit, set_aside)
    dev = fits_window(segment(load_cuts(arguments.dev_cuts), seconds), limit, set_aside)
    if config.task.type == "lid":
        return _lid(base, train, dev, config, set_aside)
    lang = Lang.load(arguments.lang)
    kept = []
    for what, cuts in (("training", train), ("dev", dev)):
        usable = usable_text(cuts, lang, set_aside)
        if base.recognises_by == "ctc":
            usable = possible_ctc(usable, lang, base.frames_of, set_aside)
        require(usable, f"train: the {what} cuts", set_aside)
        kept.append(CutSet.from_cuts(usable))
    labels = spoken(kept[0]) if config.training.language_weight else []
    if base.recognises_by == "ctc":
        if lang.tokens is None:
            raise UserError("train: CTC needs a token set of kind char or sentencepiece, not Whisper's own tokenizer")
        model, new = to_task(base, "ctc", lang.tokens.size, lang_sha256=lang.sha256, seed=config.seed)
        return Setup(model, new, *kept, lang=lang, tokens=lang.tokens, labels=labels)
    model, new = to_task(base, "seq2seq", None)
    return Setup(model, new, *kept, lang=lang, tokens=decoder_tokens(model, arguments.model, lang), labels=labels)


def _lid(base: SpeechModel, train: list, dev: list, config: Any, set_aside: SetAside) -> Setup:
    found = {cut.supervisions[0].language for cut in train} - {None}
    labels = sorted(config.task.languages or found)
    train = known_language(train, labels, set_aside)
    require(train, "train: the training cuts", set_aside)
    dev = known_language(dev, labels, set_aside)
    require(dev, "train: the dev cuts", set_aside)
    counts = Counter(cut.supervisions[0].language for cut in train)
    missing = [label for label in labels if not counts[label]]
    if missing:
        raise UserError(f"train: no training utterance in {missing[0]!r}, one of the languages to tell apart")
    if len(labels) < 2:
        raise UserError(f"train: language recognition needs two languages or more, the training cuts have {labels}")
    model, new = to_task(base, "classify", len(labels), labels, seed=config.seed)
    # The classifier learns posteriors under these priors; decoding divides them out again.
    model.meta.priors = [counts[label] / len(train) for label in labels]
    return Setup(model, new, CutSet.from_cuts(train), CutSet.from_cuts(dev), labels=labels)


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
