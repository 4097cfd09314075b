"""Stage train: adapt a (dense or factorised) base to a task.

inputs   --model       model folder (stage base or factorise)
         --train-cuts, --dev-cuts   cuts with the family's features (stage features)
         --lang        recognition: token set (stage lang)
         --teacher     `distil`: model folder of the teacher (stage base or train)
         --untranscribed-cuts   `distil`: further cuts with features, of which only the teacher's terms count
         --moments     `progressive`: second moments of the layers' inputs (stage calibrate), to weigh truncations by
outputs  --out         folder with
           model/          the adapted model, complete; LoRA merged into the weights
           adapter/        LoRA only: the adapter in peft's own format
           metrics.jsonl   loss, dev loss, dev metric, learning rate, deviation from semi-orthogonality per epoch
           set_aside.tsv   utterances that could not be used, with the reason
           ngram.arpa      `loss: lfmmi`: the token n-gram of the denominator; its words are ids
         --manifest    parameters in total and trained, dev metric, what was set aside
scratch  --scratch     folder of unfinished runs (state, and the cuts that can be used); a killed run continues there

adapt    none    only a head that the task needs and the base lacks
         head    only the head
         full    everything except the convolutional front end; factorised layers under the semi-orthogonal constraint
         lora    LoRA adapters (peft) and the head

python -m lowrank_speech.stages.train --cfg '{"seed":1,"task":{"type":"asr"},"adapt":"full"}' --model factorised/model
    --train-cuts train.jsonl.gz --dev-cuts dev.jsonl.gz --lang lang --out system --scratch scratch
    --manifest system/train.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.truncate_settings import Progressive
from lowrank_speech.process import leave
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import common
from lowrank_speech.stages.task import Task
from lowrank_speech.training.config import Runtime, TrainConfig
from lowrank_speech.training.distil_settings import DistilSettings

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed of all random draws")
    control: Literal["mean-logmel", "shuffled-labels"] | None = key(
        None, "lid: a system that cannot know languages: mean-logmel instead of the base, or trained on shuffled labels"
    )
    shuffle: Literal["utterances", "speakers"] = key(
        "utterances", "control: shuffled-labels: what the languages are permuted over"
    )
    task: Task = key(REQUIRED, "the task of the system")
    adapt: Literal["none", "head", "full", "lora"] = key(REQUIRED, "which part of the base to train")
    head: dict[str, Any] | None = key(None, "lid: kind of the classifier, and its keys; null: the default one")
    lora: LoraSettings | None = key(None, "the adapters")
    constraint: ConstraintSettings | None = key(
        None, "the constraint on the factors of a factorised model or head; null: its defaults"
    )
    progressive: Progressive | None = key(
        None, "truncations that bring a model, made with `start` by factorise, to its final ranks"
    )
    distil: DistilSettings | None = key(None, "what to learn from a teacher")
    training: TrainConfig = key(None, "the recipe", default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("head", "control"):
            if getattr(self, name) is not None and self.task.type != "lid":
                raise ValueError(f"{name}: only tasks of type lid have a classifier; remove it")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to adapt")
    parser.add_argument("--train-cuts", required=True, type=Path, help="cuts to train on, .jsonl.gz")
    parser.add_argument("--dev-cuts", required=True, type=Path, help="cuts that choose the epoch, .jsonl.gz")
    parser.add_argument("--lang", type=Path, help="recognition: folder of the stage lang")
    parser.add_argument("--teacher", type=Path, help="distil: model folder of the teacher")
    parser.add_argument(
        "--untranscribed-cuts", nargs="+", default=[], type=Path, help="distil: cuts to learn from the teacher alone"
    )
    parser.add_argument("--moments", type=Path, help="progressive: second moments of the layers' inputs, .safetensors")
    parser.add_argument("--out", required=True, type=Path, help="output: the system's folder")
    parser.add_argument("--tensorboard", type=Path, help="folder of event files, for `tensorboard: true`")
    parser.add_argument("--scratch", required=True, type=Path, help="folder of unfinished runs")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    for name in ("model", "train_cuts", "dev_cuts"):
        common.existing(getattr(arguments, name), f"--{name.replace('_', '-')}")
    if config.task.type == "asr":
        if arguments.lang is None:
            raise UserError("train: a recognition task needs --lang, the folder of a token set")
        common.existing(arguments.lang, "--lang")
    if (arguments.teacher is None) != (config.distil is None):
        raise UserError(
            "train: distil needs --teacher, the model folder of the teacher"
            if arguments.teacher is None
            else "train: --teacher has no effect without the section distil; add it, or remove --teacher"
        )
    if arguments.untranscribed_cuts and config.distil is None:
        raise UserError("train: --untranscribed-cuts needs the section distil: only a teacher can say what they teach")
    for path in arguments.untranscribed_cuts:
        common.existing(path, "--untranscribed-cuts")
    if config.distil is not None:
        common.existing(arguments.teacher, "--teacher")
        _check_distil(config)
    if config.progressive is not None:
        _check_progressive(config)
    if config.control == "mean-logmel":
        _control(run)
        return
    if arguments.moments is not None:
        common.existing(arguments.moments, "--moments")
    from lowrank_speech.training.process.signals import job

    with job(arguments.scratch) as this:
        found = _train(run)
        if found is None:
            return
        training, outputs, metrics, cost = found
        run.device, peak = cost.pop("device"), cost.pop("peak_bytes")
        with this.finishing(training.clear):
            run.finish(outputs, metrics, cost, training.sources, peak)


def _train(run: common.Run) -> tuple[Any, ...] | None:
    """The training, outputs, metrics and cost; None in a process that writes nothing, if there are several."""
    import torch

    from lowrank_speech.features.batches import Loader
    from lowrank_speech.features.inputs import inputs_of
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.tokenizer_files import tokenizer_files
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.dropout import set_dropout
    from lowrank_speech.models.folder import load_model, save_model
    from lowrank_speech.models.tasks import to_task
    from lowrank_speech.models.text import decoder_tokens
    from lowrank_speech.training.adapt import freeze_for, lora_on
    from lowrank_speech.training.losses.loss import Materials
    from lowrank_speech.training.losses.objective import make_objective
    from lowrank_speech.training.result import Outcome
    from lowrank_speech.training.run import Run, identity

    arguments, config, runtime = run.arguments, run.config, run.runtime
    task, recipe, out = config.task, config.training, arguments.out
    # Adapters, auxiliary heads and dropout draw from torch's own generator.
    torch.manual_seed(config.seed)
    base = load_model(arguments.model)
    if bool(base.meta.target) != (config.progressive is not None):
        raise UserError(
            f"train: {arguments.model} has larger ranks than planned, to be truncated while it trains; add the section "
            f"progressive, or factorise without `start`"
            if base.meta.target
            else f"train: {arguments.model} has no ranks to reach; factorise it with `start`, or remove progressive"
        )
    lang = Lang.load(arguments.lang) if task.type == "asr" else None
    training = Run(
        recipe,
        runtime,
        config.seed,
        arguments.scratch,
        arguments.train_cuts,
        arguments.dev_cuts,
        identity(run.cfg, run.code, lang, arguments.model, *filter(None, [arguments.teacher])),
        task.segment and task.segment.seconds,
        arguments.tensorboard,
        arguments.untranscribed_cuts,
        task.segment and task.segment.crop,
        task.channel,
        _relabelling(config, arguments.train_cuts),
    )
    materials = Materials(recipe, lang, labels=sorted(task.languages or ()), device=runtime.device)
    kind, head = "classify" if lang is None else base.recognises_by, None
    if kind == "classify":
        # Imported here, so that the code hash of recognition can leave it out.
        from lowrank_speech.training.classifier import check_base, check_training, classifier, head_settings

        head = head_settings(config.head)
        check_training(head, config.adapt, recipe)
        check_base(base, head, arguments.model, materials.labels)
    if kind == "seq2seq":
        base, _ = to_task(base, "seq2seq", None)
        materials.tokens = decoder_tokens(base, arguments.model, lang)
        materials.positions = base.decoder_positions
    elif kind == "ctc":
        materials.tokens = lang.tokens
    objective = make_objective(kind, materials)
    teacher, writer, inputs = None, None, inputs_of(arguments.model)
    if config.distil is not None:
        from lowrank_speech.training.losses.distil import Distilled, Teacher

        teacher = Teacher(load_model(arguments.teacher), config.distil, recipe.precision, str(arguments.teacher))
        teacher.check(base, kind, lang and lang.sha256, config.task.languages and materials.labels)
        if not arguments.untranscribed_cuts:
            objective = Distilled(objective, teacher)
        else:
            # Imported here, so that the code hash of a training without such cuts can leave it out.
            from lowrank_speech.training.data.untranscribed import Writer
            from lowrank_speech.training.losses.untranscribed import DistilledUntranscribed

            objective = DistilledUntranscribed(objective, teacher)
            if kind == "seq2seq" and config.distil.logits:
                writer = Writer(teacher.model, Loader(inputs), pick_device(runtime.device), recipe.precision)
    usable = training.usable(base, objective, writer)
    transcribed = len(usable.train) - usable.untranscribed
    if kind == "classify":
        model, new_head = classifier(base, head, usable.labels, arguments.model, config.seed)
        if new_head or config.adapt != "none":
            # The classifier learns posteriors under these priors; decoding divides them out again.
            counts = usable.languages.counts
            model.meta.priors = [counts[label] / transcribed for label in usable.labels]
        if teacher is not None:
            teacher.check(base, kind, labels=usable.labels)
    elif kind == "ctc":
        model, new_head = to_task(base, "ctc", lang.tokens.size, lang_sha256=lang.sha256, seed=config.seed)
    else:
        model, new_head = base, False
    freeze_for(model, config.adapt, new_head or config.adapt in ("head", "full", "lora"))
    peft_model = lora_on(model, config.lora) if config.adapt == "lora" else None
    metrics_file = out / "metrics.jsonl"
    if any(p.requires_grad for p in model.parameters()):
        constraint, truncation = _constraint(model, config), _truncation(model, config, arguments.moments)
        outcome = training.train(model, objective, usable, inputs, metrics_file, constraint, truncation=truncation)
        model.meta.target = None
    else:
        log.info("adapt: none, and the base has the task's head: nothing to train")
        outcome = Outcome({"parameters_trained": 0}, {"seconds_train": 0.0, "peak_bytes": None, "device": "cpu"})
        if training.ranks.first:
            write_text(metrics_file, "")
        training.ranks.stop()
    if not training.ranks.first:
        return None
    model.to("cpu")
    set_dropout(model, 0.0)
    outputs = [out / "model", metrics_file, out / "set_aside.tsv"]
    if peft_model is not None:
        outputs.append(out / "adapter")
        _merge(model, peft_model, out / "adapter")
    outputs += objective.task.save(out)
    vocabulary = tokenizer_files(lang.tokens) if kind == "ctc" else None
    save_model(model, out / "model", copy_from=arguments.model, files=vocabulary)
    run.write_set_aside(out / "set_aside.tsv", training.set_aside.rows)
    metrics = outcome.metrics | {
        "adapt": config.adapt,
        "new_head": new_head,
        "parameters_total": model.parameters_total(),
        "parameters_dense": model.dense_parameters(),
        "utterances_train": transcribed,
        "utterances_dev": len(usable.dev),
        "seconds_speech": round(float(usable.train.durations.sum()), 3),
        "labels": usable.labels if kind == "classify" else None,
        "set_aside": training.set_aside.counts(),
    }
    if kind == "classify":
        metrics["head"] = model.head.KIND
        metrics["parameters_head"] = model.parameters_head()
        metrics["parameters_head_dense"] = model.dense_head_parameters()
    if teacher is not None:
        if arguments.untranscribed_cuts:
            metrics["utterances_untranscribed"] = usable.untranscribed
            seconds = usable.train.durations[transcribed:].sum()
            metrics["seconds_untranscribed"] = round(float(seconds), 3)
        metrics["parameters_teacher"] = teacher.model.parameters_total()
        outcome.cost["bytes"]["teacher"] = teacher.bytes
    return training, outputs, metrics, outcome.cost


def _control(run: common.Run) -> None:
    """Train the control mean-logmel, which has no network."""
    from lowrank_speech.lang.select import SetAside
    from lowrank_speech.training import control

    arguments, out, set_aside = run.arguments, run.arguments.out, SetAside()
    metrics = control.train(run.config, arguments.train_cuts, arguments.dev_cuts, out, set_aside)
    outputs = [out / "model", out / "metrics.jsonl", run.write_set_aside(out / "set_aside.tsv", set_aside.rows)]
    run.finish(outputs, metrics | {"set_aside": set_aside.counts()})


def _relabelling(config: Config, cuts: Path) -> Any:
    """What gives the training cuts shuffled labels; None: they keep theirs."""
    if config.control != "shuffled-labels":
        return None
    # Imported here, so that the code hash of other trainings can leave it out.
    from lowrank_speech.training.data.shuffled import relabelling

    return relabelling(cuts, config.shuffle, config.seed, config.task.languages or ())


def _check_distil(config: Config) -> None:
    """Raise UserError if the system cannot learn from a teacher as ``distil`` says."""
    if config.adapt == "none":
        raise UserError("distil: adapt: none does not train the model; set adapt: full, lora or head, or remove distil")
    if config.distil.hidden and config.adapt == "head":
        raise UserError("distil.hidden: adapt: head does not train the encoder; set hidden: 0, or adapt: full or lora")
    if config.distil.hidden and config.training.compile:
        raise UserError("distil.hidden: the states within compiled layers cannot be read; set compile: false")


def _constraint(model: Any, config: Config) -> Any:
    """The constraint on the factors of ``model``; None: there is nothing to constrain."""
    c = config.constraint or ConstraintSettings()
    from lowrank_speech.training.adapt import constrained

    parts = constrained(model, bool(config.adapt == "full" and model.plan))
    if parts is None or c.mode == "none":
        return None
    from lowrank_speech.lowrank.constraint import SemiOrthogonal

    return SemiOrthogonal(parts, c.mode, c.scale, c.probability, c.every, config.seed)


def _check_progressive(config: Config) -> None:
    """Raise UserError if the training cannot truncate the factors."""
    if config.adapt != "full":
        raise UserError(f"progressive: adapt: {config.adapt} does not train the factors; set adapt: full, or remove it")
    if config.training.optimiser != "adamw":
        raise UserError("progressive: the state of adamw8bit cannot be truncated; set training.optimiser: adamw")


def _truncation(model: Any, config: Config, moments: Path | None) -> Any:
    """The truncations of ``progressive``, or None."""
    if config.progressive is None:
        return None
    from lowrank_speech.training.truncation import Truncation

    return Truncation(model, config.progressive, moments)


def _merge(model: Any, peft_model: Any, folder: Path) -> None:
    """Save the adapter to ``folder``, and add it to the weights of ``model``."""
    from lowrank_speech.lowrank.lora import merge
    from lowrank_speech.lowrank.structure import low_rank_layers
    from lowrank_speech.models.adapters import save_adapter

    with atomic(folder) as temporary:
        save_adapter(model, peft_model, temporary)
    merge(peft_model)
    if model.plan:  # adapters on the product add to the ranks
        model.plan = {name: layer.rank for name, layer in low_rank_layers(model.body).items()}


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("train", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    leave(main())
