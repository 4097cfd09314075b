"""Stage base: a pretrained model as a folder that the other stages read.

inputs   a hub name or a folder (``source``), pinned by ``revision``; or, with ``source: scratch``,
         --train-cuts, --dev-cuts  cuts of the pretraining splits (stage corpus)
         --lang                    token set (stage lang)
outputs  --out       model folder: config.json, model.safetensors, preprocessor, tokenizer, generation_config
         --manifest  what was loaded (source, commit, sha256), or the metrics of the pretraining
scratch  --scratch   folder of unfinished pretrainings; a killed run continues from there

``source`` may also be a system of this pipeline (.../train/.../model); the system keeps its outputs.

``window`` (seconds) shortens Whisper's window, to which every utterance is padded (published: 30 s). The model then
gives other outputs and has to be fine-tuned; see ``models.window``.

Family wav2vec2 takes wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM and data2vec-audio (config.json says which); w2v-bert takes
w2v-BERT 2.0; whisper takes Whisper. Only wav2vec2 and whisper support ``source: scratch``.

With ``source: scratch``, the stage initialises a small model from the seed and pretrains it with supervision: wav2vec
2.0 with CTC, Whisper with cross-entropy (and CTC on its encoder, ``ctc_weight``), both optionally with language
classification (``language_weight``). All systems then adapt this base.

python -m lowrank_speech.stages.base --cfg '{"seed":1,"family":"wav2vec2","source":"facebook/wav2vec2-xls-r-300m"}'
    --out base/model --manifest base/base.json
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.models.settings import BaseSettings
from lowrank_speech.process import leave
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import common
from lowrank_speech.training.config import Runtime, TrainConfig

log = logging.getLogger(__name__)

# Inputs of a pretraining stay in memory up to this many seconds of speech: 230 MB of waveforms an hour.
MEMORY_SECONDS = 2 * 3600.0


@settings
class Config(BaseSettings):
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed of the weights and of all random draws in the pretraining", kw_only=True)
    pretrain: TrainConfig | None = key(None, "source: scratch: the recipe of the pretraining")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "scratch" and self.pretrain is None:
            raise ValueError("source: scratch needs `pretrain`, the recipe of its pretraining")
        if self.source != "scratch" and self.pretrain is not None:
            raise ValueError(f"pretrain is only for source: scratch, but source is {self.source!r}; remove it")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")
    parser.add_argument("--train-cuts", type=Path, help="scratch: cuts to pretrain on, .jsonl.gz")
    parser.add_argument("--dev-cuts", type=Path, help="scratch: cuts that choose the epoch, .jsonl.gz")
    parser.add_argument("--lang", type=Path, help="scratch: folder of the stage lang")
    parser.add_argument("--tensorboard", type=Path, help="folder of event files, for `tensorboard: true`")
    parser.add_argument("--scratch", type=Path, help="scratch: folder of unfinished pretrainings")


def body(run: common.Run) -> None:
    arguments = run.arguments
    if run.config.source != "scratch":
        _import(run)
        return
    for name in ("train_cuts", "dev_cuts", "lang", "scratch"):
        flag = f"--{name.replace('_', '-')}"
        if getattr(arguments, name) is None:
            raise UserError(f"base: source: scratch needs {flag}")
        if name != "scratch":
            common.existing(getattr(arguments, name), flag)
    from lowrank_speech.training.process.signals import job

    with job(arguments.scratch) as this:
        found = _scratch(run)
        if found is None:
            return
        training, outputs, metrics, cost = found
        run.device, peak = cost.pop("device"), cost.pop("peak_bytes")
        with this.finishing(training.clear):
            run.finish(outputs, metrics, cost, training.sources, peak)


def _import(run: common.Run) -> None:
    from lowrank_speech.models.files import imported_files
    from lowrank_speech.models.folder import save_model
    from lowrank_speech.models.sources import import_model, resolve
    from lowrank_speech.models.window import preprocessor, shorten

    config, out = run.config, run.arguments.out
    found = resolve(config.source, config.revision)
    sources = {path.name: path for path in imported_files(found.folder)}
    model = import_model(found, config.family)
    files = None
    if config.window is not None and shorten(model, config.window):
        files = preprocessor(model, found.folder)
    save_model(model, out, copy_from=found.folder, files=files)
    metrics_file = run.arguments.manifest.with_name("metrics.jsonl")
    write_text(metrics_file, "")  # nothing was trained
    metrics = {
        "source": config.source,
        "revision": found.revision,
        "parameters": model.parameters_total(),
        "task": model.task,
    }
    if config.window is not None:
        metrics["window"] = model.window / 100
    run.finish([out, metrics_file], metrics, sources=sources)


def _scratch(run: common.Run) -> tuple[Any, ...] | None:
    """The training, outputs, metrics and cost; None in a process that writes nothing, if there are several."""
    from lowrank_speech.features.inputs import Inputs
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.tokenizer_files import tokenizer_files
    from lowrank_speech.models.dropout import set_dropout
    from lowrank_speech.models.folder import save_model
    from lowrank_speech.models.scratch import from_scratch
    from lowrank_speech.training.losses.loss import Materials
    from lowrank_speech.training.losses.objective import make_objective
    from lowrank_speech.training.run import Run, identity

    arguments, config, runtime = run.arguments, run.config, run.runtime
    lang = Lang.load(arguments.lang)
    if lang.tokens is None:
        raise UserError(
            f"base: the token set in {arguments.lang} is Whisper's own; a base from scratch needs characters or pieces"
        )
    # Fine-tuning freezes the front end, but here it is still untrained.
    recipe = dataclasses.replace(config.pretrain, train_front_end=True)
    materials = Materials(recipe, lang, lang.tokens, device=runtime.device)
    model = from_scratch(config.family, config.model, lang.tokens, config.seed, config.front_end)
    materials.positions = model.decoder_positions
    inputs = Inputs(**model.inputs(model.config.to_dict(), {}, ""))
    model.meta.lang_sha256 = lang.sha256
    training = Run(
        recipe,
        runtime,
        config.seed,
        arguments.scratch,
        arguments.train_cuts,
        arguments.dev_cuts,
        identity(run.cfg, run.code, lang),
        events=arguments.tensorboard,
    )
    objective = make_objective(model.task, materials)
    usable = training.usable(model, objective)
    metrics_file = arguments.manifest.with_name("metrics.jsonl")
    outcome = training.train(model, objective, usable, inputs, metrics_file, memory=MEMORY_SECONDS)
    if not training.ranks.first:
        return None
    model.to("cpu")
    set_dropout(model, 0.0)
    save_model(model, arguments.out, files=tokenizer_files(lang.tokens) if model.task == "ctc" else None)
    _preprocessor(model, inputs, arguments.out)
    metrics = outcome.metrics | {
        "source": "scratch",
        "parameters": model.parameters_total(),
        "task": model.task,
        "languages": list(lang.languages),
        "set_aside": training.set_aside.counts(),
    }
    return training, [arguments.out, metrics_file], metrics, outcome.cost


def _preprocessor(model: Any, inputs: Any, folder: Path) -> None:
    """The preprocessor file that plain transformers looks for."""
    from transformers import Wav2Vec2FeatureExtractor

    from lowrank_speech.models.window import extractor

    if inputs.kind == "logmel":
        made = extractor(model)
    else:
        made = Wav2Vec2FeatureExtractor(do_normalize=inputs.normalise, return_attention_mask=True)
    with atomic(folder / "preprocessor_config.json") as temporary:
        made.to_json_file(temporary)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("base", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    leave(main())
