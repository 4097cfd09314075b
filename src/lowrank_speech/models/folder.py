"""Model folders in Hugging Face's layout: load, save, and turn a base into a model of a task.

A folder holds ``config.json`` (transformers' config and, under ``lowrank_speech``, family, task, labels and the
low-rank plan), ``model.safetensors``, and what came with the base (tokenizer, preprocessor,
``generation_config.json``). A dense model's folder is loaded by plain transformers as well. A factorised one is built
here: structure first, then a strict load, so that transformers' initialisation of unknown Linear layers never touches
the factors.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.apply import apply_plan, write_factorised
from lowrank_speech.models.classes import BODY_PREFIX, hf_class
from lowrank_speech.models.speech import Meta, SpeechModel

KEY = "lowrank_speech"
WEIGHTS = "model.safetensors"
_NOT_COPIED = {".safetensors", ".bin", ".h5", ".msgpack"}  # weights, in whatever format
_INDEX = ".index.json"  # of weights in several files: beside a single one it would lead astray


def quiet_config(config: Any) -> Any:
    """Switch off what the training recipe does itself or not at all: SpecAugment of transformers and LayerDrop."""
    for name, value in {
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "use_weighted_layer_sum": False,
    }.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def build(task: str, config: Any) -> nn.Module:
    """A model of transformers' class for config and task with weights from the current torch seed."""
    model = hf_class(config.model_type, task)(config)
    return model.eval()


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> SpeechModel:
    """Load a model folder that this package wrote, dense or factorised, bit for bit.

    The weights are memory-mapped where they are stored in ``dtype``: they are read when they are used.
    UserError when the folder is not one, when weights are missing or left over, or when a shape does not fit.
    """
    folder = Path(folder)
    config_file, weights = folder / "config.json", folder / WEIGHTS
    for path in (config_file, weights):
        if not path.is_file():
            raise UserError(f"{folder} is no model folder: {path.name} is missing")
    raw = json.loads(config_file.read_text(encoding="utf-8"))
    if KEY not in raw:
        raise UserError(f"{config_file} has no key {KEY!r}: import the model with the stage `base` first")
    meta = Meta(**raw[KEY])
    config = _config(meta.family, raw)
    with torch.device("meta"):
        hf = hf_class(config.model_type, meta.task)(config)
    if meta.plan:
        with torch.device("meta"):
            apply_plan(hf, meta.plan)
    hf = _assign(hf, load_file(weights), weights).to(dtype)
    generation = folder / "generation_config.json"
    if generation.is_file() and hasattr(hf, "generation_config"):
        from transformers import GenerationConfig

        hf.generation_config = GenerationConfig.from_dict(json.loads(generation.read_text(encoding="utf-8")))
    return SpeechModel(hf.eval(), meta)


def _config(family: str, raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {k: v for k, v in raw.items() if k not in (KEY, "model_type")}
    return quiet_config(AutoConfig.for_model(raw.get("model_type", family), **values))


def _assign(hf: nn.Module, state: dict[str, torch.Tensor], source: Path) -> nn.Module:
    """Strict load into a model on the meta device; tied weights are tied again, fixed buffers rebuilt."""
    tied = _tied(hf)
    for alias, name in tied.items():
        state[alias] = state[name]
    try:
        hf.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UserError(f"{source} does not fit its config.json: {error}") from error
    if tied:
        hf.tie_weights()
    left = [name for name, tensor in [*hf.named_parameters(), *hf.named_buffers()] if tensor.is_meta]
    if left:
        raise UserError(f"{source}: {left[0]} has no value in the file and cannot be rebuilt")
    for name, parameter in hf.named_parameters():
        # Whisper's sinusoids are constants.
        parameter.requires_grad_(not name.endswith("encoder.embed_positions.weight"))
    return hf


def _tied(hf: nn.Module) -> dict[str, str]:
    """Names that share another parameter: alias -> the name under which it is saved."""
    return {"proj_out.weight": "model.decoder.embed_tokens.weight"} if hasattr(hf, "proj_out") else {}


def save_model(
    model: SpeechModel,
    folder: str | Path,
    copy_from: str | Path | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` as a folder, atomically; ``copy_from``: a folder whose other files are taken along.

    ``files``: name -> text of files that stand in the place of those, or beside them.
    """
    with model_folder(model, model.meta, folder, copy_from) as weights:
        for name, text in (files or {}).items():
            weights.with_name(name).write_text(text, encoding="utf-8")
        aliases = _tied(model.hf)
        state = {k: v.detach().cpu().contiguous() for k, v in model.hf.state_dict().items() if k not in aliases}
        save_file(state, weights, metadata={"format": "pt"})


def save_factorised(
    model: SpeechModel, plan: Mapping[str, int], folder: str | Path, copy_from: str | Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Write the low-rank model that ``plan`` makes of the dense ``model``, layer by layer; ``model`` stays as it is.

    ``options`` (``init``, ``moments``, ``seed``, ``means``) and the rows returned: see ``lowrank.apply.factorise``. The
    folder is what factorising in memory and ``save_model`` would write.
    """
    meta = dataclasses.replace(model.meta, plan=dict(plan))
    with model_folder(model, meta, folder, copy_from) as weights:
        return write_factorised(weights, model.hf, plan, leave_out=_tied(model.hf), **options)


@contextlib.contextmanager
def model_folder(
    model: SpeechModel, meta: Meta, folder: str | Path, copy_from: str | Path | None = None
) -> Iterator[Path]:
    """A folder for ``model`` under ``meta``, all but its weights; yields the path for those. Atomic as a whole."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        if copy_from is not None:
            for path in sorted(Path(copy_from).iterdir()):
                wanted = path.suffix not in _NOT_COPIED and not path.name.endswith(_INDEX)
                if path.is_file() and path.name != "config.json" and wanted:
                    shutil.copyfile(path, temporary / path.name)
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["architectures"] = [model.class_name]
        config[KEY] = dataclasses.asdict(meta)
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        if model.task == "seq2seq":
            model.hf.generation_config.to_json_file(temporary / "generation_config.json")
        yield temporary / WEIGHTS


def body_state(model: SpeechModel) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """State and plan of the pretrained body alone, named relative to it."""
    prefix = BODY_PREFIX[model.class_name]
    heads = (*(f"{name}." for name in model.head_names), "proj_out.")
    state = {k.removeprefix(prefix): v for k, v in model.hf.state_dict().items() if not k.startswith(heads)}
    plan = {k.removeprefix(prefix): r for k, r in (model.plan or {}).items()}
    return state, plan


def to_task(
    model: SpeechModel,
    task: str,
    outputs: int | None,
    labels: Sequence[str] = (),
    lang_sha256: str | None = None,
    seed: int = 0,
) -> tuple[SpeechModel, bool]:
    """The same pretrained body under another task's class, and whether a new head was drawn (from ``seed``).

    ``outputs``: size of a CTC vocabulary or number of classes (None for seq2seq). A CTC model keeps its own head where
    its outputs stand for the same token table (``lang_sha256``). A Whisper classifier takes the encoder alone. Weights
    are shared with ``model``.
    """
    if model.task == task and (task == "seq2seq" or (task == "ctc" and model.meta.lang_sha256 == lang_sha256)):
        return model, False
    config = type(model.config).from_dict(model.config.to_dict())
    if task == "ctc":
        config.vocab_size = outputs
    elif task == "classify":
        if getattr(config, "add_adapter", False):
            raise UserError(
                f"the {config.model_type} base has a convolutional adapter (add_adapter), with which transformers does "
                f"not classify; take a checkpoint without it"
            )
        config.num_labels = outputs
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    elif task == "seq2seq":
        raise UserError(f"a {model.family} model with the task {model.task!r} cannot be turned into seq2seq")
    target_class = hf_class(config.model_type, task)
    state, plan = body_state(model)
    prefix = BODY_PREFIX[target_class.__name__]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with torch.device("meta"):
            hf = target_class(quiet_config(config))
        for name in SpeechModel(hf, Meta(model.family, task)).head_names:
            head = hf.get_submodule(name).to_empty(device="cpu")
            head.reset_parameters()
            head.weight.data.normal_(0.0, getattr(config, "initializer_range", 0.02))
            head.bias.data.zero_()
    names = {name for name, _ in hf.named_modules()}
    plan = {f"{prefix}{k}": r for k, r in plan.items() if f"{prefix}{k}" in names}
    if plan:
        with torch.device("meta"):
            apply_plan(hf, plan)
    wanted = set(hf.state_dict())
    new = SpeechModel(hf, Meta(model.family, task)).head_names
    heads = {k: v for k, v in hf.state_dict().items() if k.split(".")[0] in new}
    full = {f"{prefix}{k}": v for k, v in state.items() if f"{prefix}{k}" in wanted} | heads
    meta = Meta(model.family, task, plan or None, list(labels), lang_sha256)
    return SpeechModel(_assign(hf, full, Path("the base")).eval(), meta), bool(heads)
