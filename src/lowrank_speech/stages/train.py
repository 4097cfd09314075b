"""Stage train: adapt a (dense or factorised) base to a task.

inputs   --model       model folder (stage base or factorise)
         --train-cuts, --dev-cuts   cuts with the family's features (stage features)
         --lang        recognition: token set (stage lang)
outputs  --out         folder with
           model/          the adapted model, complete; LoRA merged into the weights
           adapter/        LoRA only: the adapter in peft's own format
           metrics.jsonl   loss, dev loss, dev metric, learning rate, deviation from semi-orthogonality per epoch
           set_aside.tsv   utterances that could not be used, with the reason
         --manifest    parameters in total and trained, peak memory, time, dev metric
scratch  --scratch     state of a run under way, from which a killed run goes on, and the cuts that can be used

adapt    none    nothing of the base trains; a head that the task needs and the base lacks is trained alone
         head    the head alone
         full    everything but the convolutional front end; factorised layers under the semi-orthogonal constraint
         lora    LoRA adapters (peft) and the head

python -m lowrank_speech.stages.train --cfg '{"seed":1,"task":{"type":"asr"},"adapt":"full"}' --model factorised/model
    --train-cuts train.jsonl.gz --dev-cuts dev.jsonl.gz --lang lang --out system --scratch scratch
    --manifest system/train.json
"""

import argparse
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import Manifest, atomic, canonical_json, sha256, write_table, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.stages import common
from lowrank_speech.training.config import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """Utterances are cut to at most ``seconds``."""

    seconds: float | None = None


@dataclass(frozen=True)
class Task:
    """``asr`` or ``lid``. ``languages``: lid's classes; by default those of the training cuts."""

    type: Literal["asr", "lid"]
    languages: tuple[str, ...] = ()
    segment: Segment | None = None


@dataclass(frozen=True)
class Config:
    """The stage's slice."""

    seed: int
    task: Task
    adapt: Literal["none", "head", "full", "lora"]
    lora: LoraSettings | None = None
    constraint: ConstraintSettings = field(default_factory=ConstraintSettings)
    training: TrainConfig = field(default_factory=TrainConfig)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to adapt")
    parser.add_argument("--train-cuts", required=True, type=Path, help="cuts to train on, .jsonl.gz")
    parser.add_argument("--dev-cuts", required=True, type=Path, help="cuts that choose the epoch, .jsonl.gz")
    parser.add_argument("--lang", type=Path, help="recognition: folder of the stage lang")
    parser.add_argument("--out", required=True, type=Path, help="output: the system's folder")
    parser.add_argument("--tensorboard", type=Path, help="folder for event files, if the recipe asks for them")
    parser.add_argument("--scratch", required=True, type=Path, help="folder for the state of a run under way")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    manifest = Manifest("train", cfg, seed=config.seed)
    for name in ("model", "train_cuts", "dev_cuts"):
        common.existing(getattr(arguments, name), f"--{name.replace('_', '-')}")
    if config.task.type == "asr":
        if arguments.lang is None:
            raise UserError("train: a recognition task needs --lang")
        common.existing(arguments.lang, "--lang")
    from lowrank_speech.training.job import job

    with job(arguments.scratch) as over:
        found = _run(arguments, config, cfg)
        if found is None:
            return
        outputs, numbers = found
        manifest.device = numbers.pop("device")
        manifest.write(arguments.manifest, outputs, numbers, peak_bytes=numbers.pop("peak_bytes"))
        over()


def _run(arguments: argparse.Namespace, config: Config, cfg: dict) -> tuple[list[Path], dict[str, Any]] | None:
    """Outputs and numbers; None in those of several processes that write nothing."""
    import torch

    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.inputs import inputs_of
    from lowrank_speech.lang.select import SetAside
    from lowrank_speech.lang.tokenizer_files import tokenizer_files
    from lowrank_speech.lowrank.constraint import SemiOrthogonal
    from lowrank_speech.lowrank.lora import merge
    from lowrank_speech.lowrank.structure import low_rank_layers
    from lowrank_speech.models.adapters import save_adapter
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.dropout import set_dropout
    from lowrank_speech.models.folder import load_model, save_model
    from lowrank_speech.training.adapt import freeze_for, lora_on, prepare
    from lowrank_speech.training.distributed import Ranks
    from lowrank_speech.training.loop import Trainer
    from lowrank_speech.training.objective import Objective
    from lowrank_speech.training.progress import events_folder
    from lowrank_speech.training.splits import augmentation

    set_aside = SetAside()
    ranks = Ranks.start(config.training.processes, pick_device(config.training.device))
    # Adapters, auxiliary heads and dropout draw from torch's own generator.
    torch.manual_seed(config.seed)
    changes = augmentation(config.training)
    base = load_model(arguments.model)
    key = _key(arguments, config, cfg)
    setup = prepare(base, arguments, config, key, set_aside, ranks)
    model, out = setup.model, arguments.out
    trains_head = setup.new_head or config.adapt in ("head", "full", "lora")
    freeze_for(model, config.adapt, trains_head)
    peft_model = lora_on(model, config.lora) if config.adapt == "lora" else None
    constraint = None
    if config.adapt == "full" and model.plan and config.constraint.mode != "none":
        c = config.constraint
        constraint = SemiOrthogonal(model.body, c.mode, c.scale, c.probability, c.every, config.seed)
    metrics = out / "metrics.jsonl"
    if any(p.requires_grad for p in model.parameters()):
        objective = Objective(model, config.training, setup.lang, setup.tokens, setup.labels)
        inputs = inputs_of(arguments.model)
        loader = Loader(inputs, workers=config.training.workers, augmentation=changes)
        events = events_folder(config.training, arguments.tensorboard)
        trainer = Trainer(
            model, objective, config.training, config.seed, arguments.scratch, key, loader, constraint, events, ranks
        )
        numbers = trainer.run(setup.train, setup.dev, metrics)
        numbers["device"] = str(trainer.device)
    else:
        log.info("adapt: none, and the base has the task's head: nothing to train")
        numbers = {"parameters_trained": 0, "seconds_train": 0.0, "device": "cpu", "peak_bytes": None}
        if ranks.first:
            write_text(metrics, "")
        ranks.stop()
    if not ranks.first:
        return None
    model.to("cpu")
    set_dropout(model, 0.0)
    outputs = [out / "model", metrics, out / "set_aside.tsv"]
    if peft_model is not None:
        outputs.append(out / "adapter")
        with atomic(out / "adapter") as temporary:
            save_adapter(model, peft_model, temporary)

        merge(peft_model)
        if model.plan:  # adapters on the product add to the ranks
            model.plan = {name: layer.rank for name, layer in low_rank_layers(model.body).items()}
    vocabulary = tokenizer_files(setup.tokens) if model.task == "ctc" else None
    save_model(model, out / "model", copy_from=arguments.model, files=vocabulary)
    write_table(out / "set_aside.tsv", ("id", "reason", "detail"), set_aside.rows)
    if set_aside.rows:
        log.warning("set aside: %s; see %s", set_aside.summary(), out / "set_aside.tsv")
    numbers |= {
        "adapt": config.adapt,
        "new_head": setup.new_head,
        "parameters_total": model.parameters_total(),
        "parameters_dense": model.dense_parameters(),
        "utterances_train": len(setup.train),
        "utterances_dev": len(setup.dev),
        "seconds_speech": round(float(setup.train.durations.sum()), 3),
        "labels": setup.labels if config.task.type == "lid" else None,
        "set_aside": set_aside.counts(),
    }
    return outputs, numbers


def _key(arguments: argparse.Namespace, config: Config, cfg: dict) -> str:
    """Hex sha256 of the slice and of all that the training reads."""
    from lowrank_speech.models.files import files_read

    read = [arguments.train_cuts, arguments.dev_cuts, *files_read(arguments.model)]
    if config.task.type == "asr":
        read += common.token_files(arguments.lang)
    identity = canonical_json(cfg) + "".join(sha256(path) for path in read if path.exists())
    return hashlib.sha256(identity.encode()).hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("train", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
