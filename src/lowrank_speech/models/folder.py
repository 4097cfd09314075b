"""Load and save model folders in Hugging Face's layout.

A folder holds ``config.json``, ``model.safetensors``, and files that came with the base (``files``). Under the key
``lowrank_speech``, ``config.json`` has the family, task, labels, the low-rank plan, and the settings of a head that
transformers does not have. Plain transformers also loads a dense model's folder: weights have transformers' names,
except for such a head, which is stored as ``head.*``. A factorised folder has the same names, with ``.first`` and
``.second`` for the factors; transformers loads it after ``import lowrank_speech.hf``, and refuses it without
(``files.GUARDED``). Loading here builds the structure first and then loads strictly, so that transformers'
initialisation of unknown Linear layers never touches the factors.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.models.build import assign, quiet_config, skeleton, stored
from lowrank_speech.models.files import GUARDED, KEY, WEIGHTS, copy_files
from lowrank_speech.models.heads.registry import head_class
from lowrank_speech.models.speech import Meta, SpeechModel
from lowrank_speech.settings import read, resolved


def load_model(folder: str | Path, dtype: torch.dtype = torch.float32) -> SpeechModel:
    """Load a model folder that this package wrote, dense or factorised, bit for bit.

    Weights that are stored in ``dtype`` are memory-mapped, so they are read when they are used. Raises UserError if the
    folder is not a model folder, weights are missing or unexpected, or a shape does not match.
    """
    folder = Path(folder)
    config_file, weights = folder / "config.json", folder / WEIGHTS
    for path in (config_file, weights):
        if not path.is_file():
            raise UserError(f"{folder} is not a model folder: {path.name} is missing; give the folder of a model")
    raw = json.loads(config_file.read_text(encoding="utf-8"))
    model = structure_of(raw, config_file)
    _fill(model, load_file(weights), weights)
    model.to(dtype)
    generation = folder / "generation_config.json"
    if generation.is_file() and hasattr(model.hf, "generation_config"):
        from transformers import GenerationConfig

        model.hf.generation_config = GenerationConfig.from_dict(json.loads(generation.read_text(encoding="utf-8")))
    return model.eval()


def structure_of(raw: Mapping[str, Any], where: Path) -> SpeechModel:
    """The model that a folder's config.json (``raw``, read from ``where``) describes, on the meta device."""
    if KEY not in raw:
        raise UserError(f"{where} has no key {KEY!r}; import the model with the stage `base` first")
    said = dict(raw[KEY])
    head, plan = said.pop("head", None), said.pop("plan", None)
    try:
        meta = Meta(**said)
    except TypeError as error:
        raise UserError(f"{where}: another version wrote the key {KEY} ({error}); make the folder again") from error
    if head is not None:
        head = read(head_class(head.get("kind")).SETTINGS, head, f"{where}: {KEY}.head")
    model = skeleton(meta.task, _config(meta.family, raw), head=head, meta=meta)
    if plan:
        # Older plans have the names of transformers' class; now they are relative to the body.
        plan = {name.removeprefix(model.body_prefix): rank for name, rank in plan.items()}
    with torch.device("meta"):
        return model.factorised(plan, meta.exact)


def _config(family: str, raw: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {k: v for k, v in raw.items() if k not in (KEY, "model_type", *GUARDED)}
    return quiet_config(AutoConfig.for_model(raw.get("model_type", family), **values))


def _fill(model: SpeechModel, state: Mapping[str, Tensor], source: Path) -> None:
    """Load a folder's weights into a model on the meta device. Raises UserError, with ``source``, on a mismatch."""
    names = {name: model.disk_name(name) for name in stored(model)}
    known = {theirs: own for own, theirs in names.items()}
    guards = {f"{model.body_prefix}{name}.weight" for name in model.plan or ()}  # of hf.LowRankLoader
    state = {name: tensor for name, tensor in state.items() if tensor.numel() or name not in guards}
    assign(model, {known.get(name, name): tensor for name, tensor in state.items()}, str(source), names)


def save_model(
    model: SpeechModel,
    folder: str | Path,
    copy_from: str | Path | None = None,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write ``model`` as a folder, atomically; ``copy_from``: the folder whose other files also belong to the model.

    Tokenizer files are copied only if the model's outputs still stand for their tokens. A CTC model with a new head
    needs new ones, which ``lang.tokenizer_files`` makes. ``files``: name -> text of files that replace copied ones or
    are added.
    """
    with model_folder(model, model.meta, folder, copy_from, files) as weights:
        state = model.state_dict()
        kept = {model.disk_name(name): state[name].detach().cpu().contiguous() for name in stored(model)}
        save_file(kept, weights, metadata={"format": "pt"})


def _same_tokens(meta: Meta, decodes: bool, source: Path) -> bool:
    """Whether a model with ``meta``, which has a decoder or not, uses the tokenizer in the folder ``source``."""
    if meta.task != "ctc":
        return decodes  # a decoder keeps its tokens
    file = source / "config.json"
    said = json.loads(file.read_text(encoding="utf-8")).get(KEY, {}) if file.is_file() else {}
    return said.get("lang_sha256") == meta.lang_sha256  # None: the published head, which belongs to the tokenizer


@contextlib.contextmanager
def model_folder(
    model: SpeechModel,
    meta: Meta,
    folder: str | Path,
    copy_from: str | Path | None = None,
    files: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Write a folder for ``model`` with ``meta``, atomically; yields the path where the caller writes the weights."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        if copy_from is not None:
            copy_files(Path(copy_from), temporary, tokenizer=_same_tokens(meta, model.decodes, Path(copy_from)))
        config = json.loads(model.config.to_json_string(use_diff=False))
        config["architectures"] = [model.architecture]
        config[KEY] = dataclasses.asdict(meta)
        for name in ("target", "head_plan"):  # which few models have
            if getattr(meta, name) is None:
                del config[KEY][name]
        if not model.known_head:
            config[KEY]["head"] = resolved(model.head.settings)
        if meta.plan:
            config |= GUARDED
        text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
        (temporary / "config.json").write_text(text + "\n", encoding="utf-8")
        if model.decodes:
            model.hf.generation_config.to_json_file(temporary / "generation_config.json")
        for name, content in (files or {}).items():
            (temporary / name).write_text(content, encoding="utf-8")
        yield temporary / WEIGHTS
