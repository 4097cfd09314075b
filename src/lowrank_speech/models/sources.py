"""Where a base model comes from: drawn from a seed (``scratch``), a local folder, or the hub.

A hub name is resolved by huggingface_hub (cache first; ``revision`` pins it); nothing is executed that comes with a
model (``trust_remote_code`` stays off). What was resolved ends up in the stage's manifest.
"""

import logging
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.classes import class_name, family_of, hf_class, task_of
from lowrank_speech.models.folder import KEY, build, load_model, quiet_config
from lowrank_speech.models.speech import Meta, SpeechModel

log = logging.getLogger(__name__)

# Everything but weights in other frameworks' formats, and MMS's language adapters: 1,107 files, of which none is used.
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin"]
NOT_WANTED = ["adapter.*"]
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A resolved source: the folder with the files, and the commit if it came from the hub."""

    folder: Path
    revision: str | None


def resolve(source: str, revision: str | None) -> Source:
    """Find ``source``: an existing folder, else a hub name at ``revision`` (cache, then network where there is one)."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"base model {source}: the folder has no config.json")
        return Source(folder, revision)
    if not _HUB_NAME.fullmatch(source):
        raise UserError(f"base model {source}: neither a folder nor a hub name of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = Path(snapshot_download(source, revision=revision, allow_patterns=PATTERNS, ignore_patterns=NOT_WANTED))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"base model {source} (revision {revision or 'main'}) is neither in the hub's local cache nor to be had "
            f"from the hub: {str(error).splitlines()[0]}. Download it where there is a network "
            f"(`hf download {source}`), or give a folder as `source`"
        ) from error
    return Source(path, path.name if path.parent.name == "snapshots" else revision)


def is_wanted(path: Path) -> bool:
    """Whether a file of a model's folder is one that an import reads."""
    return not any(fnmatchcase(path.name, pattern) for pattern in NOT_WANTED)


def import_model(found: Source, family: str) -> SpeechModel:
    """Load a published checkpoint as the class that its config names, or as the bare encoder for pretraining classes.

    A folder that this package wrote is taken as it is, with its plan and what its outputs stand for: a system that was
    trained can be the base of the next. Weights are float32 in memory. UserError if the folder's model type belongs to
    another family.
    """
    from transformers import AutoConfig
    from transformers import logging as hf_logging

    hf_logging.set_verbosity_error()
    config = AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
    actual = family_of(config.model_type, str(found.folder))
    if actual != family:
        raise UserError(
            f"{found.folder} is a {config.model_type} model, but the config says family: {family}; set family: {actual}"
        )
    if hasattr(config, KEY):
        return load_model(found.folder)
    _check_supported(config, found.folder)
    named = (config.architectures or [""])[0]
    task = task_of(config.model_type, named)
    if task == "classify" and family != "whisper":  # its labels are not ours: take the encoder, a new head is drawn
        task = "body"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # what the checkpoint lacks is drawn: the same model at each import
        hf, info = hf_class(config.model_type, task).from_pretrained(
            found.folder,
            config=quiet_config(config),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # masked_spec_embed is used by transformers' SpecAugment alone, which is off here; some checkpoints lack it.
    missing = [k for k in info["missing_keys"] if not k.endswith("masked_spec_embed")]
    if missing:
        raise UserError(
            f"{found.folder}: the checkpoint lacks {len(missing)} weights of {named}, {missing[0]} among them"
        )
    log.info(
        "imported %s as %s: %d parameters",
        found.folder,
        class_name(config.model_type, task),
        sum(map(torch.numel, hf.parameters())),
    )
    if getattr(config, "adapter_attn_dim", None) is not None:
        log.warning(
            "%s has MMS's language adapters in its layers: those of its main weights are kept as part of the model, "
            "its adapter.* files are not read",
            found.folder,
        )
    return SpeechModel(hf.eval(), Meta(family, task))


def _check_supported(config: Any, folder: Path) -> None:
    """UserError on what a model type allows and this package cannot load again."""
    positions = getattr(config, "position_embeddings_type", "relative_key")
    if config.model_type == "wav2vec2-bert" and positions not in ("relative_key", None):
        raise UserError(
            f"{folder}/config.json: position_embeddings_type {positions!r} is not supported; take a checkpoint with "
            f"relative_key, as w2v-BERT 2.0 has"
        )


def scratch_wav2vec2(overrides: dict[str, Any], vocabulary: int, seed: int) -> SpeechModel:
    """A ``Wav2Vec2ForCTC`` with weights from ``seed``; ``overrides`` are keys of transformers' Wav2Vec2Config."""
    from transformers import Wav2Vec2Config

    config = _config(
        Wav2Vec2Config, overrides, vocab_size=vocabulary, pad_token_id=0, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(seed)
    return SpeechModel(build("ctc", quiet_config(config)), Meta("wav2vec2", "ctc"))


def scratch_whisper(overrides: dict[str, Any], tokens: Any, seed: int) -> SpeechModel:
    """A ``WhisperForConditionalGeneration`` with weights from ``seed`` whose special tokens are those of ``tokens``.

    ``tokens``: a token set with ``size``, ``sot``, ``eot``, ``transcribe``, ``no_timestamps`` and ``language_ids``
    (language -> id). ``generation_config`` is complete, as a published Whisper's.
    """
    from transformers import GenerationConfig, WhisperConfig

    special = {
        "pad_token_id": tokens.eot,
        "bos_token_id": tokens.eot,
        "eos_token_id": tokens.eot,
        "decoder_start_token_id": tokens.sot,
    }
    config = _config(
        WhisperConfig, overrides, vocab_size=tokens.size, suppress_tokens=None, begin_suppress_tokens=None, **special
    )
    torch.manual_seed(seed)
    hf = build("seq2seq", quiet_config(config))
    hf.generation_config = GenerationConfig(
        **special,
        is_multilingual=True,
        lang_to_id={f"<|{language}|>": i for language, i in tokens.language_ids.items()},
        task_to_id={"transcribe": tokens.transcribe},
        no_timestamps_token_id=tokens.no_timestamps,
        return_timestamps=False,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        max_length=config.max_target_positions,
    )
    return SpeechModel(hf, Meta("whisper", "seq2seq"))


def _config(cls: type, overrides: dict[str, Any], **fixed: Any) -> Any:
    known = set(cls().to_dict()) | set(fixed)
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise UserError(f"bases.*.model: {unknown[0]!r} is no key of transformers' {cls.__name__}")
    clash = sorted(set(overrides) & set(fixed))
    if clash:
        raise UserError(f"bases.*.model: {clash[0]!r} follows from the tokens and cannot be set")
    try:
        return cls(**{**overrides, **fixed})
    except Exception as error:  # transformers raises its own strict-dataclass errors, of no common class
        raise UserError(f"bases.*.model: {error}") from error


def set_dropout(model: nn.Module, p: float) -> None:
    """Set every dropout of a transformers speech model to ``p``: modules and the floats that attention reads.

    LoRA's own dropout (peft's ``lora_dropout``) is a setting of the adapters and stays as it is.
    """
    for part, module in model.named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in part.split("."):
            module.p = p
        for name in ("dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, p)
