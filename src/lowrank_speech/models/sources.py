"""Load a published model from a local folder or the hub.

huggingface_hub resolves hub names (cache first; ``revision`` pins the commit). Code that comes with a model is never
executed (``trust_remote_code`` stays off). The stage's manifest records what was resolved. A name
without owner is a folder below $SPEECH_MODELS (``published``).
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lowrank_speech import published
from lowrank_speech.errors import UserError
from lowrank_speech.models.build import quiet_config, wrap
from lowrank_speech.models.files import KEY, LEGAL
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.registry import family_class, family_of
from lowrank_speech.models.speech import Meta, SpeechModel

log = logging.getLogger(__name__)

# Not fetched: weights in other frameworks' formats, and MMS's language adapters, 1,107 files that nothing uses.
PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin", *LEGAL]
NOT_WANTED = ["adapter.*"]
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A resolved source: the folder with the files, and the commit if it comes from the hub."""

    folder: Path
    revision: str | None


def resolve(source: str, revision: str | None, patterns: Sequence[str] = PATTERNS) -> Source:
    """Find ``source``: an existing folder (also below $SPEECH_MODELS), or a hub name at ``revision`` (first in the
    cache, then in the network).

    ``patterns``: which files to fetch from the hub. Raises UserError if the model is not found.
    """
    folder = published.local(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"base model {folder}: the folder has no config.json; give the folder of a model")
        return Source(folder, revision)
    if published.is_name(source):
        raise UserError(f"base model {source}: {published.missing(source)}")
    if not _HUB_NAME.fullmatch(source):
        raise UserError(f"base model {source}: neither a folder nor a hub name of the form owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        path = snapshot_download(source, revision=revision, allow_patterns=list(patterns), ignore_patterns=NOT_WANTED)
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"base model {source} (revision {revision or 'main'}) is not in the hub's local cache and cannot be "
            f"fetched from the hub: {str(error).splitlines()[0]}. Download it on a machine with a network "
            f"(`hf download {source}`), or give a folder as `source`"
        ) from error
    path = Path(path)
    return Source(path, path.name if path.parent.name == "snapshots" else revision)


def config_folder(model: str, revision: str | None = None) -> Path:
    """A folder with the config.json of ``model``, a folder or a hub name; fetches only that file from the hub."""
    folder = published.local(model)
    if folder.is_dir() or _HUB_NAME.fullmatch(model):
        return resolve(model, revision, ["config.json"]).folder
    raise UserError(
        f"{model} is not a model folder, a hub name of the form owner/name, or a preset (--preset lists them)"
        + (f"; {published.missing(model)}" if published.is_name(model) else "")
    )


def import_model(found: Source, family: str) -> SpeechModel:
    """Load a published checkpoint for the task of the class in its config; for a pretraining class, only the encoder.

    A folder that this package wrote is loaded as it is, with its plan and its output symbols, so that a trained system
    can be the base of another one. Weights are float32 in memory. Raises UserError if the folder's model type belongs
    to another family.
    """
    import transformers
    from transformers import logging as hf_logging

    hf_logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(found.folder, trust_remote_code=False)
    actual = family_of(config.model_type, str(found.folder))
    if actual != family:
        raise UserError(
            f"{found.folder} is a {config.model_type} model, but the config says family: {family}; set family: {actual}"
        )
    cls = family_class(family)
    if hasattr(config, KEY):
        model = load_model(found.folder)
        if model.meta.lang_sha256 is None:  # the model still has its published tokens
            model.imported(found.folder)
        return model
    named = (config.architectures or [""])[0]
    task = cls.task_of(named)
    cls.check_import(config, found.folder, task)
    if task == "classify" and "body" in cls.TASKS:  # the labels are not ours: load the encoder, for a new head
        task = "body"
        log.warning("discarding the head of %s (%s): its classes do not belong to a task here", found.folder, named)
    name = cls.published(config, task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # weights that the checkpoint lacks are random, but the same at each import
        hf, info = getattr(transformers, name).from_pretrained(
            found.folder,
            config=quiet_config(config),
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # Only transformers' SpecAugment, which is off here, uses masked_spec_embed; some checkpoints lack it.
    missing = [k for k in info["missing_keys"] if not k.endswith("masked_spec_embed")]
    if missing:
        raise UserError(
            f"{found.folder}: the checkpoint lacks {len(missing)} weights of {named}, such as {missing[0]}; give a "
            f"complete one"
        )
    model = wrap(hf.eval(), Meta(family, task))
    model.imported(found.folder)
    log.info("imported %s as %s: %d parameters", found.folder, name, model.parameters_total())
    return model


def open_dense(source: str | Path, revision: str | None = None) -> tuple[SpeechModel, Path]:
    """The dense model of a folder (ours or in the hub's layout) or hub name, and the folder with its files.

    Raises UserError if the model does not exist or is already factorised.
    """
    found = resolve(str(source), revision)
    file = found.folder / "config.json"
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    model = import_model(found, family_of(model_type, str(file)))
    if model.plan:
        raise UserError(f"{source} is already factorised ({len(model.plan)} layers); give the dense model")
    return model, found.folder
