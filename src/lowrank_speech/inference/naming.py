"""What MODEL means in the commands and in ``load``: an experiment's system, a model folder, or a hub name.

    exp/mine:wav2vec2/asr/lowrank     a system of an experiment: its output folder, then base/task/method
    exp/mine/train/whisper/asr/full   the folder of a system, or the model folder in it
    small                             a folder that this package wrote, or a Hugging Face folder
    whisper-base                      a folder below $SPEECH_MODELS
    openai/whisper-base               a hub name, with ``revision``

    found = find("exp/mine:wav2vec2/asr/lowrank")
    found.folder, found.lang          exp/mine/train/wav2vec2/asr/lowrank/model, exp/mine/lang/chars

This module imports neither torch nor transformers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowrank_speech import published
from lowrank_speech.errors import UserError
from lowrank_speech.models.files import KEY, WEIGHTS

SYSTEM = "base/task/method"
SHOWN = 12
"""Number of systems that a message lists."""
STAGES = ("train.json", "export.json")
"""Manifests beside the model folder of a trained system."""
PARTS = ("pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Other files of weights of a Hugging Face folder."""
EXPORTS = {"*.onnx": "onnxruntime", "model.bin": "CTranslate2 (faster-whisper)"}
"""Files of exports for other programs -> the program."""


@dataclass(frozen=True)
class Found:
    """A model that a name stands for.

    name        as it was given
    folder      the model folder
    origin      experiment: a system of an experiment; folder; hub
    ours        whether this package wrote the folder (config.json has the key ``lowrank_speech``)
    trained     whether a stage trained the model, so that it is a system and not only a base
    experiment  the output folder of the experiment, if the model is in one
    system      base/task/method in it
    lang        the folder of the stage lang with the model's tokens; None: the model folder has its own tokenizer
    revision    of a hub name: the commit
    """

    name: str
    folder: Path
    origin: Literal["experiment", "folder", "hub"]
    ours: bool
    trained: bool = False
    experiment: Path | None = None
    system: str | None = None
    lang: Path | None = None
    revision: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))


def find(name: str | Path, revision: str | None = None) -> Found:
    """The model that ``name`` stands for; ``revision``: commit, tag or branch of a hub name.

    UserError: there is no such model, or its folder lacks a file; lists the systems of an experiment.
    """
    name = str(name)
    folder = published.local(name)
    if not folder.exists() and (named := _split(name)) is not None:
        return _local(name, _system(*named), revision)
    if folder.is_file():
        raise UserError(f"{name} is a file; give the folder of the model, an experiment's system, or a hub name")
    if folder.is_dir():
        return _local(name, _model_folder(folder), revision)
    return _hub(name, revision)


def systems(experiment: Path) -> list[str]:
    """The trained systems of an experiment: base/task/method, sorted."""
    root = experiment / "train"
    return sorted(file.parent.parent.relative_to(root).as_posix() for file in root.glob("*/*/*/model/config.json"))


def _split(name: str) -> tuple[Path, str] | None:
    """The experiment and the system that ``name`` consists of, if it has the form EXP:SYSTEM."""
    experiment, colon, system = name.rpartition(":")
    if not (colon and experiment) or Path(name).exists():
        return None
    return Path(experiment).expanduser(), system


def _system(experiment: Path, system: str) -> Path:
    if not experiment.is_dir():
        raise UserError(
            f"{experiment} does not exist; before the colon, give the output folder of an experiment, such as exp/mine"
        )
    folder = experiment / "train" / system / "model"
    if len([part for part in system.split("/") if part not in ("", ".", "..")]) == 3 and folder.is_dir():
        return folder
    raise UserError(f"{experiment} has no trained system {system or SYSTEM!r}; {_listed(experiment)}")


def _listed(experiment: Path) -> str:
    found = systems(experiment)
    if not found:
        return "no system of it is trained yet; run the experiment first"
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"expected {experiment}:SYSTEM with one of: {', '.join(found[:SHOWN])}{more}"


def _model_folder(folder: Path) -> Path:
    """``folder``, or the model folder in it if it is the folder of a stage."""
    for pattern, program in EXPORTS.items():
        if next(folder.glob(pattern), None) is not None and not (folder / WEIGHTS).exists():
            raise UserError(
                f"{folder} is an export for {program}; its README.md says how to run it. Here, give the model that it "
                f"was made from"
            )
    if (folder / "config.json").is_file():
        return folder
    if (folder / "model" / "config.json").is_file():
        return folder / "model"
    if (folder / "adapter_config.json").is_file():
        beside = folder.parent / "model"
        other = f"; the model with it merged is {beside}" if beside.is_dir() else "; give a model with it merged"
        raise UserError(f"{folder} is a LoRA adapter, not a model{other}")
    if (folder / "train").is_dir():
        raise UserError(f"{folder} is the folder of an experiment, not a model; {_listed(folder)}")
    raise UserError(f"{folder} is not a model folder: config.json is missing; give the folder of a model")


def _local(name: str, folder: Path, revision: str | None) -> Found:
    if revision is not None:
        raise UserError(f"revision is {revision}, but {name} is a folder; only hub names have revisions: remove it")
    said = _config(folder)
    experiment, system = _place(folder)
    return Found(
        name,
        folder,
        "folder" if experiment is None else "experiment",
        KEY in said,
        any((folder.parent / file).is_file() for file in STAGES),
        experiment,
        system,
        _lang(experiment, said),
    )


def _hub(name: str, revision: str | None) -> Found:
    if published.is_name(name):
        raise UserError(f"{name} is not a model: {published.missing(name)}")
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise UserError(
            f"{name} does not exist; expected a model folder, a system of an experiment (exp/mine:{SYSTEM}), or a hub "
            f"name (owner/name)"
        )
    from lowrank_speech.models.sources import resolve

    try:
        found = resolve(name, revision)
    except UserError as error:
        said = str(error).removeprefix("base model ").replace("give a folder as `source`", "give its folder")
        raise UserError(said) from error
    said = _config(found.folder)
    return Found(name, found.folder, "hub", KEY in said, revision=found.revision)


def _config(folder: Path) -> dict[str, Any]:
    """The content of config.json. UserError: the folder lacks a file, or the file is broken."""
    file = folder / "config.json"
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(said, dict):
            raise ValueError("expected a JSON mapping")
    except ValueError as error:
        raise UserError(f"{file} is not valid ({error}); use the file of the published or trained model") from error
    other = () if KEY in said else PARTS
    if not any((folder / weights).is_file() for weights in (WEIGHTS, *other)):
        raise UserError(f"{folder} is not a complete model folder: {WEIGHTS} is missing; copy or train the model again")
    return said


def _place(folder: Path) -> tuple[Path | None, str | None]:
    """The experiment that a model folder is in, and its system."""
    parts = folder.absolute().parts
    shown = folder if len(folder.parts) > 6 else folder.absolute()
    for stage in ("train", "export"):  # train/base/task/method/model, export/base/task/method/format/model
        depth = 5 if stage == "train" else 6
        if len(parts) > depth and parts[-depth] == stage and parts[-1] == "model":
            return shown.parents[depth - 1], "/".join(parts[-depth + 1 : -depth + 4])
    for stage, depth in (("base", 3), ("factorise", 4)):  # base/NAME/model, factorise/BASE/NAME/model
        if len(parts) > depth and parts[-depth] == stage and (shown.parents[depth - 1] / "lang").is_dir():
            return shown.parents[depth - 1], None
    return None, None


def _lang(experiment: Path | None, said: dict[str, Any]) -> Path | None:
    """The folder of the stage lang whose tokens the outputs of a model stand for."""
    digest = (said.get(KEY) or {}).get("lang_sha256")
    if experiment is None or digest is None:
        return None
    from lowrank_speech.lang.load import MANIFEST, Lang

    for file in sorted((experiment / "lang").glob(f"*/{MANIFEST}")):
        try:
            if Lang.load(file.parent).sha256 == digest:
                return file.parent
        except UserError:  # it was edited since, so that its tokens are not those of the model
            continue
    return None
