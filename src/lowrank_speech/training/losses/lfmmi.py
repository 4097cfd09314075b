"""End-to-end LF-MMI over a token n-gram, per label, computed by k2 or torch. Dev metric: token error rate, greedy path.

    loss = -(log P(w) sum over alignments of w  -  den_scale log of the same sum over all w)

P is an n-gram over the tokens of the training targets (``ngram``), estimated at the start of each run, and the same in
all of them. The first sum is CTC's loss, the second one the ``denominator``. Both use the logarithms of the model's
softmax. With ``den_scale: 1`` any other scale of a frame's outputs would give the same loss.

The outputs are not posteriors of the tokens, but scores to combine with P: P(w | x) is proportional to P(w) times the
sum over the alignments of w. A decoder therefore needs no priors; with the n-gram at weight 1 it searches what was
trained.

Source: Hadian et al., "End-to-end speech recognition using lattice-free MMI", Interspeech 2018; icefall's LFMMILoss.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.ngrams import NGrams
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.backends import choose_backend
from lowrank_speech.training.losses.ctc_losses import ctc_losses
from lowrank_speech.training.losses.denominator import Graph, log_totals
from lowrank_speech.training.losses.denominator_k2 import MOST_ARCS, arc_number, log_totals_k2
from lowrank_speech.training.losses.frame_labels import FrameLabels
from lowrank_speech.training.losses.loss import Materials, TargetError, Term
from lowrank_speech.training.losses.ngram import NGram

log = logging.getLogger(__name__)


class Lfmmi(FrameLabels):
    name = "lfmmi"
    tasks = ("ctc",)

    def __init__(self, materials: Materials, auxiliary: bool = False):
        super().__init__(materials, auxiliary)
        if materials.lang is None or materials.lang.tokens is None:
            raise UserError("train: LF-MMI needs a token set of kind char or sentencepiece, not Whisper's own")
        self.settings = materials.recipe.lfmmi
        self.ngram: NGram | None = None
        self.graph: Graph | None = None

    def fit(self, targets: Callable[[], Iterable[Sequence[int]]]) -> None:
        self._use(NGram.of(targets(), self.materials.lang.tokens.size, self.settings.order))
        counts = ", ".join(f"{n} {i}-grams" for i, n in enumerate(self.ngram.model.counts, start=1))
        log.info("LF-MMI: the token n-gram has %d contexts, %s", len(self.graph.last), counts)

    def _use(self, ngram: NGram) -> None:
        self.ngram, self.graph = ngram, ngram.graph()

    def build(self, model: SpeechModel) -> None:
        if self.graph is None:
            raise RuntimeError("the n-gram is missing: call fit before build")
        arcs, config, obstacle = arc_number(self.graph), self.materials.recipe.ctc, None
        if arcs > MOST_ARCS:
            obstacle = f"the graph of LF-MMI has {arcs} arcs, and k2 takes at most {MOST_ARCS}"
        if config.backend == "auto":  # k2 has the same result, but took 30 times as long on a CPU
            config = replace(config, backend="torch")
        self.backend = choose_backend(config, pick_device(self.materials.device), "LF-MMI", obstacle)

    def forward(
        self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor], errors: bool = False
    ) -> Term:
        labels, sizes = target
        logits = self.logits(model, states, frames, target)
        k2, beam = self.backend.k2, self.backend.output_beam
        try:
            numerators, possible = ctc_losses(logits, frames, labels, sizes, k2, beam)
            weights = [self.ngram.log_probability(ids.tolist()) for ids in labels.split(sizes.tolist())]
        except ValueError as error:
            raise TargetError(str(error)) from error
        units = int(sizes[possible].sum())
        found = self.errors(logits, frames, target) if errors else None
        rows = possible.nonzero().flatten()
        total = numerators.sum()
        if len(rows):
            if self.graph.last.device != logits.device:
                self.graph = self.graph.to(logits.device)
            with torch.autocast(logits.device.type, enabled=False):
                log_probs = logits[rows.to(logits.device)].float().log_softmax(-1)
                counts = frames.to("cpu", torch.int64)[rows]
                if k2 is None:
                    denominators = log_totals(log_probs, counts, self.graph)
                else:
                    denominators = log_totals_k2(k2, log_probs, counts, self.graph, beam)
                given = torch.tensor(weights, dtype=torch.float64)[rows].sum().item()
                total = total - given + self.settings.den_scale * denominators.sum()
        return Term(total / max(units, 1), units, int((~possible).sum()), found, logits)

    # -- the n-gram is a part of the state -----------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        model = self.ngram.model
        arrays = {name: torch.from_numpy(getattr(model, name)) for name in ("key", "prob", "backoff")}
        return {"words": list(model.words), "order": model.order, "starts": list(model.starts), **arrays}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        arrays = {name: state[name].numpy() for name in ("key", "prob", "backoff")}
        model = NGrams(tuple(state["words"]), state["order"], tuple(state["starts"]), **arrays)
        self._use(NGram(model, self.materials.lang.tokens.size))

    def save(self, folder: Path) -> list[Path]:
        if self.ngram is None:  # nothing was trained
            return []
        arpa.write(self.ngram.model, folder / "ngram.arpa")
        return [folder / "ngram.arpa"]
