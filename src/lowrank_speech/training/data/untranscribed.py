"""Untranscribed cuts of a training with a teacher: select them, and let the teacher transcribe them where it must.

    speech = Untranscribed(splits, folder, ranks, writer)
    speech.transcribe(model)                      # once, before the first step; every process does its share
    speech.usable(model, loss, set_aside)         # the cuts, with targets for the loss's logits

folder/teacher-<rank>.jsonl    [id, tokens] for every ``world``-th cut, in their order

A decoder reads what the teacher wrote. A run that continues reads the transcripts instead of writing them again; if it
was killed in between, it goes on after the last complete line. So all runs train on the same tokens.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.lang.select import Reason, SetAside
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.data.splits import Split
from lowrank_speech.training.data.targets import with_targets
from lowrank_speech.training.losses.loss import Loss
from lowrank_speech.training.memory.precision import autocast
from lowrank_speech.training.process.distributed import Ranks

log = logging.getLogger(__name__)

KEY = "untranscribed"
"""The name of the target of an untranscribed cut, which has no other."""
SECONDS_BETWEEN_LINES = 60.0


class Writer:
    """Transcribes cuts, one at a time and greedily, with ``teacher`` on ``device``, in ``precision``."""

    def __init__(self, teacher: SpeechModel, loader: Loader, device: torch.device, precision: str):
        self.teacher, self.loader, self.device, self.precision = teacher, loader, device, precision

    def language(self, cut: Any) -> str | Reason | None:
        """The language to write a cut in; None: the teacher detects it, as the cut has none; or why it cannot."""
        said, known = cut.supervisions[0].language, self.teacher.languages
        found = nearest_language(said, known)
        if said is not None and known and found is None:
            return Reason("unknown language", f"{said!r}; the teacher knows {', '.join(sorted(known))}")
        return found

    @torch.no_grad()
    def __call__(self, cut: Any) -> list[int]:
        """The tokens that the decoder reads: the prompt, and what the teacher wrote."""
        batch = self.loader.collate([cut])
        self.teacher.to(self.device)
        features, lengths = batch["features"].to(self.device), batch["lengths"].to(self.device)
        with autocast(self.precision, self.device):
            return self.teacher.greedy(features, lengths, cut, self.language(cut))[0].tolist()


class Untranscribed:
    """The untranscribed ``splits`` of a training, whose scratch folder is ``folder``.

    ``writer``: transcribes a cut; None: no decoder reads these cuts.
    """

    def __init__(self, splits: Sequence[Split], folder: Path, ranks: Ranks, writer: Writer | None = None):
        self.splits, self.folder, self.ranks, self.writer = splits, folder, ranks, writer

    def transcribe(self, model: SpeechModel) -> None:
        """Let the teacher transcribe this process's share of the cuts, unless it has done so before."""
        if self.writer is None:
            return
        rank, world, path = self.ranks.rank, self.ranks.world, self._path(self.ranks.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _complete_lines(path)
        durations = [cut.duration for cut in islice(self._cuts(model, SetAside()), rank, None, world)]
        if known >= len(durations):
            return
        if known:
            log.info("the teacher has transcribed %d of %d untranscribed utterances before", known, len(durations))
        start = last = time.monotonic()
        left, speech = sum(durations[known:]), 0.0
        cuts = islice(self._cuts(model, SetAside()), rank + known * world, None, world)
        bar = tqdm(desc="transcribe", total=len(durations), initial=known, unit="utterance", disable=None)
        with path.open("a", encoding="utf-8") as file, bar:
            for done, cut in enumerate(cuts, known + 1):
                file.write(json.dumps([cut.id, self.writer(cut)]) + "\n")
                file.flush()
                speech += cut.duration
                bar.update()
                now = time.monotonic()
                if now - last >= SECONDS_BETWEEN_LINES or done == len(durations):
                    last, rate = now, speech / max(now - start, 1e-9)
                    log.info(
                        "the teacher transcribes: %d of %d untranscribed utterances, %.1f s of speech/s, %.0f min left",
                        *(done, len(durations), rate, (left - speech) / rate / 60),
                    )

    def usable(self, model: SpeechModel, loss: Loss, set_aside: SetAside) -> Iterator[Any]:
        """Yield the cuts with their target for the logits of ``loss``. UserError: a split has no usable cut."""
        written = self._written() if self.writer is not None else None
        for split in self.splits:
            used = 0
            for cut in self._fitting(split, model, set_aside):
                tokens = None if written is None else next(written, (None, None))
                if tokens is not None and tokens[0] != cut.id:
                    raise UserError(
                        f"{self._path(0)}: the teacher's transcripts do not belong to {split.path}; remove the folder "
                        f"to make them again"
                    )
                target = loss.untranscribed(None) if tokens is None else self._target(loss, tokens[1])
                if isinstance(target, Reason):
                    set_aside.add(cut.id, *target)
                    continue
                used += 1
                yield with_targets(cut, {KEY: target})
            if not used:
                raise UserError(
                    f"untranscribed, {split.path}: no utterance is left; set aside: {set_aside.summary()}; choose "
                    f"another split, or remove it"
                )

    def _cuts(self, model: SpeechModel, set_aside: SetAside) -> Iterator[Any]:
        for split in self.splits:
            yield from self._fitting(split, model, set_aside)

    def _fitting(self, split: Split, model: SpeechModel, set_aside: SetAside) -> Iterator[Any]:
        """The cuts that the model takes, and the teacher can transcribe if it has to."""
        for cut in split.cuts(model, set_aside):
            language = None if self.writer is None else self.writer.language(cut)
            if isinstance(language, Reason):
                set_aside.add(cut.id, *language)
            else:
                yield cut

    def _target(self, loss: Loss, tokens: list[int]) -> Any | Reason:
        target, limit = loss.untranscribed(tokens), loss.materials.positions
        prompt, text = target
        if not loss.materials.tokens.decode(text[:-1]).strip():
            return Reason("empty transcript of the teacher")
        read = len(prompt) + len(text) - 1
        if limit is not None and read > limit:
            return Reason("text longer than the decoder", f"{read} tokens of the teacher, the decoder takes {limit}")
        return target

    def _path(self, rank: int) -> Path:
        return self.folder / f"teacher-{rank}.jsonl"

    def _written(self) -> Iterator[tuple[str, list[int]]]:
        """Id and tokens of all cuts, in their order."""
        files = [self._path(rank).open(encoding="utf-8") for rank in range(self.ranks.world)]
        try:
            for number in count():
                line = files[number % len(files)].readline()
                if not line:
                    return
                yield tuple(json.loads(line))
        finally:
            for file in files:
                file.close()


def _complete_lines(path: Path) -> int:
    """The number of lines of ``path`` before the first one that a kill or a power cut broke; removes what follows."""
    lines = end = 0
    with path.open("ab+") as file:
        file.seek(0)
        for line in file:
            try:
                json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            lines, end = lines + 1, end + len(line)
        file.truncate(end)
    return lines
