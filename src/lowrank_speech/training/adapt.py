"""Setting up an adaptation: the task's model and data, what trains, and the adapters."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.features.kept import KeptCuts, keep
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import (
    Languages,
    SetAside,
    known_language,
    require,
    usable_text,
)
from lowrank_speech.lowrank.lora import LoraSettings, add_lora
from lowrank_speech.models.families import layer_patterns, lora_targets
from lowrank_speech.models.folder import to_task
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.text import decoder_tokens
from lowrank_speech.training.splits import Split

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


def prepare(base: SpeechModel, arguments: Any, config: Any, set_aside: SetAside) -> Setup:
    """The model of ``config.task`` on ``base``, and its training and dev cuts; unusable ones go to ``set_aside``.

    The cuts that can be used are written to ``arguments.scratch`` in one pass and read from there.
    """
    splits = {
        "train": Split(arguments.train_cuts, config.training, config.task.segment, config.seed),
        "dev": Split(arguments.dev_cuts, None, config.task.segment),
    }
    if config.task.type == "lid":
        return _lid(base, splits, arguments.scratch, config, set_aside)
    lang, languages, kept = Lang.load(arguments.lang), Languages(), []
    for name, split in splits.items():
        usable = usable_text(split.cuts(base, set_aside), lang, set_aside)
        if base.recognises_by == "ctc":
            usable = split.possible(usable, base, lang, set_aside)
        if name == "train":
            usable = languages.over(usable)
        kept.append(_kept(usable, name, arguments.scratch, set_aside))
    labels = languages.spoken() if config.training.language_weight else []
    if base.recognises_by == "ctc":
        if lang.tokens is None:
            raise UserError("train: CTC needs a token set of kind char or sentencepiece, not Whisper's own tokenizer")
        model, new = to_task(base, "ctc", lang.tokens.size, lang_sha256=lang.sha256, seed=config.seed)
        return Setup(model, new, *kept, lang=lang, tokens=lang.tokens, labels=labels)
    model, new = to_task(base, "seq2seq", None)
    return Setup(model, new, *kept, lang=lang, tokens=decoder_tokens(model, arguments.model, lang), labels=labels)


def _kept(cuts: Iterable[Any], name: str, scratch: Path, set_aside: SetAside) -> KeptCuts:
    kept = keep(cuts, scratch / f"{name}.jsonl")
    if not len(kept):
        kept.remove()
    require(kept, f"train: the {'training' if name == 'train' else name} cuts", set_aside)
    return kept


def _lid(base: SpeechModel, splits: dict[str, Split], scratch: Path, config: Any, set_aside: SetAside) -> Setup:
    labels = sorted(config.task.languages)
    if not labels:  # a pass of its own: which languages there are decides what is set aside
        found = Languages()
        for _ in found.over(splits["train"].cuts(base, SetAside())):
            pass
        labels = sorted(found.counts)
    languages, kept = Languages(), []
    for name, split in splits.items():
        known = known_language(split.cuts(base, set_aside), labels, set_aside)
        kept.append(_kept(languages.over(known) if name == "train" else known, name, scratch, set_aside))
    counts, (train, dev) = languages.counts, kept
    missing = [label for label in labels if not counts[label]]
    if missing:
        raise UserError(f"train: no training utterance in {missing[0]!r}, one of the languages to tell apart")
    if len(labels) < 2:
        raise UserError(f"train: language recognition needs two languages or more, the training cuts have {labels}")
    model, new = to_task(base, "classify", len(labels), labels, seed=config.seed)
    # The classifier learns posteriors under these priors; decoding divides them out again.
    model.meta.priors = [counts[label] / len(train) for label in labels]
    return Setup(model, new, train, dev, labels=labels)


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
