"""One training from settings to outcome: what the stages `base` (from scratch) and `train` share.

    run = Run(recipe, runtime, seed, scratch, train_cuts, dev_cuts, identity)    # joins the other processes
    usable = run.usable(model, objective)         # cuts with their targets; run.set_aside lists the others
    outcome = run.train(model, objective, usable, inputs, metrics)
    run.clear()                                   # once outputs and manifest are written

A run keeps its state in ``scratch/<key>/``; the key identifies settings, inputs and code. A run with another key gets
its own folder and leaves the old one alone.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import canonical_json, file_state, sha256
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import SetAside
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.files import files_read
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import Runtime, TrainConfig
from lowrank_speech.training.data.prepared import are_prepared, prepared
from lowrank_speech.training.data.splits import Split, Usable, augmentation, crops, through_channel, usable_cuts
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.losses.objective import Objective
from lowrank_speech.training.process.checkpoint import Checkpoints
from lowrank_speech.training.process.distributed import Ranks
from lowrank_speech.training.result import Outcome

log = logging.getLogger(__name__)

SHOWN = 12  # digits of the key in the name of its folder
KEY = re.compile(f"[0-9a-f]{{{SHOWN}}}")


class Run:
    """A training by ``recipe``. ``identity``: what else decides its result besides recipe, seed and cuts, as text.

    ``seconds``: cut utterances to at most this length; ``crop``: draw the length of training utterances from this
    range in each epoch. ``events``: folder for TensorBoard's files, if they are wanted.
    ``untranscribed``: further training cuts, of which only the terms of a teacher count. ``channel``: what all speech
    goes through (``features.channel``); ``relabel``: gives training cuts other labels.
    """

    def __init__(
        self,
        recipe: TrainConfig,
        runtime: Runtime,
        seed: int,
        scratch: Path,
        train_cuts: Path,
        dev_cuts: Path,
        identity: Sequence[str],
        seconds: float | None = None,
        events: Path | None = None,
        untranscribed: Sequence[Path] = (),
        crop: tuple[float, float] | None = None,
        channel: str | None = None,
        relabel: Callable[[Iterable[Any]], Iterator[Any]] | None = None,
    ):
        if runtime.tensorboard and events is None:
            raise UserError("tensorboard: true needs --tensorboard, the folder for the event files")
        self.recipe, self.runtime, self.seed = recipe, runtime, seed
        self.events = events if runtime.tensorboard else None
        self.ranks = Ranks.start(recipe.processes, pick_device(runtime.device))
        self.crops = crops(crop, seed)
        # Training utterances that are cropped in each epoch are not cut before.
        own = (None, None) if crop else (seconds, seed)
        self.splits = (
            Split("the training cuts", train_cuts, recipe, *own, crops=self.crops),
            Split("the dev cuts", dev_cuts, None, seconds),
        )
        self.splits[0].changes += () if relabel is None else (relabel,)
        self.untranscribed = [Split("untranscribed", one, recipe, *own, crops=self.crops) for one in untranscribed]
        for split in [*self.splits, *self.untranscribed] if channel is not None else ():
            split.changes += (through_channel(channel, split.path),)
        self.augmentation = augmentation(recipe)
        self.set_aside = SetAside()
        # Name, size and time of noise recordings: reading all of them at every start would take minutes.
        self.sources = recipe.noise.recordings() if recipe.noise is not None else {}
        noise = [canonical_json([name, *file_state(path)]) for name, path in self.sources.items()]
        self.key = _key([*identity, *map(_cuts_digest, (train_cuts, dev_cuts, *untranscribed)), *noise])
        self.scratch, self.folder = scratch, scratch / self.key[:SHOWN]
        for other in self._others():
            if KEY.fullmatch(other.name) and not Checkpoints(other).files():
                shutil.rmtree(other)  # the run was killed before its first state, so nothing is lost
            else:
                log.info("keeping %s: an unfinished run with other settings, inputs or code", other)

    def usable(self, model: SpeechModel, objective: Objective, writer: Any = None) -> Usable:
        """The cuts that can be used, with their targets. Only the first of several processes reads the manifests.

        A run that continues reuses the cuts that it prepared before. ``writer``: transcribes what is ``untranscribed``
        (``data.untranscribed.Writer``), if a decoder reads it; for that, each process does its share.
        """
        more = None
        if self.untranscribed:
            # Imported here, so that the code hash of a training without such cuts can leave it out.
            from lowrank_speech.training.data.untranscribed import Untranscribed

            more = Untranscribed(self.untranscribed, self.folder, self.ranks, writer)
            if not are_prepared(self.folder, self.key):
                more.transcribe(model)
            self.ranks.wait()

        def make() -> Usable:
            try:
                return prepared(
                    self.folder,
                    self.key,
                    lambda: usable_cuts(
                        self.splits,
                        model,
                        objective,
                        self.folder,
                        self.set_aside,
                        () if more is None else more.usable(model, objective.task, self.set_aside),
                    ),
                    self.set_aside,
                )
            except UserError:
                if not Checkpoints(self.folder).files():
                    self.clear()
                raise

        found = self.ranks.from_first(make)
        objective.labels[:] = found.labels
        return found

    def train(
        self,
        model: SpeechModel,
        objective: Objective,
        usable: Usable,
        inputs: Inputs,
        metrics: Path,
        constraint: Any = None,
        memory: float = 0.0,
        truncation: Any = None,
    ) -> Outcome:
        """Let the losses learn from the cuts, initialise auxiliary heads, and train to the end.

        See ``Trainer`` and ``Trainer.run``.

        ``memory``: seconds of speech whose inputs stay in memory.
        """
        transcribed = len(usable.train) - usable.untranscribed
        objective.fit(lambda: (usable.train[i] for i in range(transcribed)))
        loader = Loader(inputs, memory, self.runtime.workers, self.augmentation, self.crops)
        trainer = Trainer(
            model,
            objective.build(model),
            self.recipe,
            self.seed,
            self.folder,
            self.key,
            loader,
            constraint,
            self.events,
            self.ranks,
            self.runtime,
            truncation,
        )
        return trainer.run(usable.train, usable.dev, metrics)

    def clear(self) -> None:
        """Remove the state and the prepared cuts of this run, which is over. Lists the folders of other runs."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for other in self._others():
            size = sum(path.stat().st_size for path in [other, *other.rglob("*")] if path.is_file())
            log.info("%s (%.1f MB) belongs to an unfinished run; remove it if you do not need it", other, size / 1e6)

    def _others(self) -> list[Path]:
        if not self.ranks.first or not self.scratch.is_dir():
            return []
        return sorted(path for path in self.scratch.iterdir() if path not in (self.folder, self.scratch / "lock"))


def identity(cfg: dict[str, Any], code: str | None, lang: Lang | None, *models: Path) -> list[str]:
    """What decides the result of a training besides its cuts: settings, code, text, the initial model, a teacher."""
    parts = [canonical_json(cfg), code or ""]
    if lang is not None:
        text = [lang.normaliser.config.to_dict(), lang.leading_space]
        parts.append(canonical_json([lang.kind, lang.sha256, lang.languages, *text]))
    for model in models:
        parts += [f"{path.name} {sha256(path)}" for path in files_read(model)]
    return parts


def _cuts_digest(path: Path) -> str:
    """Digest of the cuts in ``path``, and of stored features if the manifest beside it lists their digests."""
    manifest = path.with_name(f"{path.name.removesuffix('.jsonl.gz')}.json")
    stored = json.loads(manifest.read_text(encoding="utf-8")).get("outputs") if manifest.is_file() else None
    return sha256(path) + canonical_json(stored)


def _key(parts: Sequence[str]) -> str:
    """Hex sha256 of ``parts``."""
    return hashlib.sha256(canonical_json(list(parts)).encode()).hexdigest()
