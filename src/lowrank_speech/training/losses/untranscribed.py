"""Distillation on speech without transcripts: on these utterances only the terms of the teacher count.

A batch may mix utterances with and without transcripts. The losses of the task see the transcribed ones only, the terms
of the teacher see all. Each term is a mean over its own units, so a batch without transcripts has a task's loss of 0
units, which is 0.

A frame (CTC) or an utterance (classification) needs no more than the features. A decoder (seq2seq) has to read tokens:
what the teacher itself wrote (``training.data.untranscribed``), as in Distil-Whisper.

Source: Gandhi et al., "Distil-Whisper", 2023 (pseudo-labels); Kim and Rush, "Sequence-level knowledge distillation",
EMNLP 2016.

B batch, F frames, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.data.targets import targets_of
from lowrank_speech.training.data.untranscribed import KEY
from lowrank_speech.training.losses.distil import Distilled, Encoded
from lowrank_speech.training.losses.loss import Term
from lowrank_speech.training.losses.objective import Objective


def parted(cuts: Sequence[Any]) -> tuple[list[int], list[int]]:
    """The rows of the transcribed cuts of a batch, and those of the others."""
    rows: tuple[list[int], list[int]] = ([], [])
    for row, cut in enumerate(cuts):
        rows[KEY in targets_of(cut)].append(row)
    return rows


class DistilledUntranscribed(Distilled):
    """``Distilled`` for batches with untranscribed cuts. Batches without them have the same losses, bit for bit."""

    def terms(
        self, model: SpeechModel, states: Tensor, frames: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> list[Term]:
        """As in the base class, over the transcribed cuts; ``logits`` are theirs alone."""
        rows, others = parted(cuts)
        if not others:
            return super().terms(model, states, frames, cuts, errors)
        if not rows:
            return [Term(states.new_zeros((), dtype=torch.float32), 0) for _ in self.losses]
        return super().terms(model, *_rows((states, frames), rows), [cuts[i] for i in rows], errors)

    def apart(
        self, model: SpeechModel, logits: Tensor | None, own: Encoded, theirs: Encoded, cuts: Sequence[Any]
    ) -> Term:
        """As in the base class. Both kinds of cuts have their own targets, whose decoders read different lengths."""
        parts = parted(cuts)
        if not parts[1]:
            return super().apart(model, logits, own, theirs, cuts)
        found = [
            super(DistilledUntranscribed, self).apart(
                model, known, _rows(own, rows), _rows(theirs, rows), [cuts[i] for i in rows]
            )
            for rows, known in zip(parts, (logits, None), strict=True)
            if rows
        ]
        units = sum(term.units for term in found)
        return Term(sum(term.mean * term.units for term in found) / max(units, 1), units)

    def units(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        parts = parted(batch["cuts"])
        if not parts[1]:
            return super().units(model, batch)
        heard, others = (_part(batch, rows) for rows in parts)
        counts = Objective.units(self, model, heard) if parts[0] else [0] * len(self.losses)
        found = [self.units_of_teacher(model, part) for part in (heard, others) if part["cuts"]]
        return counts + [sum(numbers) for numbers in zip(*found, strict=True)]

    def _targets(self, cuts: Sequence[Any]) -> list[Any]:
        """Of cuts that are all transcribed, or all not: those have only the target of the task's logits."""
        given = [targets_of(cut) for cut in cuts]
        return [self.task.collate([one[KEY] for one in given])] if KEY in given[0] else super()._targets(cuts)


def _rows(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    chosen = torch.tensor(rows, device=encoded[0].device)
    return encoded[0][chosen], encoded[1][chosen.to(encoded[1].device)]


def _part(batch: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    return {"cuts": [batch["cuts"][i] for i in rows], **{key: batch[key][rows] for key in ("features", "lengths")}}
