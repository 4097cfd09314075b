"""Distillation: while it trains, a student imitates a frozen teacher on the same batches.

The objective of the student is a weighted sum of

    the task's loss    weight ``transcripts``; auxiliary losses keep their weights
    ``logits``         T² KL(p_T || q_T) per prediction: a frame (CTC), a token of the text (seq2seq, with teacher
                       forcing), an utterance (classification). p_T and q_T are the softmax of the teacher's and the
                       student's logits, divided by the temperature T; T² keeps the size of the gradient
    ``hidden``         ||s - t||² / mean ||t||² per frame, averaged over the encoder layers: s and t are the student's
                       and the teacher's states after a layer, the mean is over the frames of the utterance. So the
                       error is relative, the weight has no unit, and padding does not count

The teacher runs in eval mode, without gradients, and reads the features without SpecAugment: its outputs are better on
what it can hear, and the student learns to predict them from less (noisy student training). It sees the same speed,
noise and reverberation, which change the samples before the features are computed: frames must correspond.

The teacher belongs neither to the model nor to the objective's parameters: no state or system contains it.

Source: Hinton et al., "Distilling the knowledge in a neural network", 2015; Gandhi et al., "Distil-Whisper", 2023
(KL and cross-entropy, T = 2); Chang et al., "DistilHuBERT", ICASSP 2022 (hidden states); Park et al., "Improved noisy
student training for automatic speech recognition", Interspeech 2020 (augmentation of the student alone).

B batch, F frames, D hidden size, V vocabulary.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.distil_settings import DistilSettings
from lowrank_speech.training.losses.loss import Loss, Term
from lowrank_speech.training.losses.objective import Losses, Objective, summed
from lowrank_speech.training.memory.precision import DTYPES, FrozenWeights

Encoded = tuple[Tensor, Tensor]
"""Encoder states (B, F, D), and their valid lengths (B,)."""

# -- the two losses ----------------------------------------------------------------------------------------------------


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(teacher / T) || softmax(student / T)) (N,) float32, in nats, for logits (N, V)."""
    p = (teacher.float() / temperature).log_softmax(-1)
    q = (student.float() / temperature).log_softmax(-1)
    return temperature**2 * F.kl_div(q, p, reduction="none", log_target=True).sum(-1)


def relative_error(student: Tensor, teacher: Tensor, frames: Tensor) -> Tensor:
    """||s - t||² / mean ||t||², averaged over all valid frames of the batch; a float32 scalar.

    The states are (B, F, D), of which ``frames`` (B,) are valid; the mean is over an utterance. An utterance whose
    teacher's states are all 0 counts as 0.
    """
    valid = within(frames, teacher.shape[1])
    error = ((student.float() - teacher.float()).square().sum(-1) * valid).sum(1)
    power = (teacher.float().square().sum(-1) * valid).sum(1)
    ratio = torch.where(power > 0, error / power.clamp(min=torch.finfo(power.dtype).tiny), 0.0)
    return (ratio * frames).sum() / frames.sum().clamp(min=1)


# -- the teacher -------------------------------------------------------------------------------------------------------


class Teacher:
    """A frozen model, which holds its matrices in ``precision``. ``name``: what messages call it."""

    def __init__(self, model: SpeechModel, settings: DistilSettings, precision: str, name: str = "the teacher"):
        self.model, self.settings, self.name = model.eval().requires_grad_(False), settings, name
        if precision != "fp32":
            FrozenWeights(model, DTYPES[precision], file=None).hold()

    @property
    def bytes(self) -> int:
        """Bytes of its weights and buffers, tied ones once."""
        return sum(t.nbytes for t in {id(t): t for t in [*self.model.parameters(), *self.model.buffers()]}.values())

    def check(
        self, base: SpeechModel, task: str, lang_sha256: str | None = None, labels: Sequence[str] | None = None
    ) -> None:
        """Raise UserError if a student cannot learn from this teacher.

        ``base``: the model that becomes the student; ``task``: the student's; ``lang_sha256``: of a CTC student's token
        table; ``labels``: the languages that a classifier distinguishes (None: not known yet).
        """
        own, theirs = self.model, base
        facts = [("family", own.family, theirs.family), ("features per frame", own.feature_size, theirs.feature_size)]
        facts += [("window in seconds", own.window_seconds, theirs.window_seconds)]
        if self.settings.hidden:
            facts += [("width of the encoder", own.width, theirs.width)]
            facts += [("encoder layers", len(encoder_layers(own)), len(encoder_layers(theirs)))]
        if self.settings.logits:
            facts += [("task", own.task, task)]
            if task == "seq2seq":
                facts += [("number of outputs", own.config.vocab_size, theirs.config.vocab_size)]
            elif task == "classify" and labels is not None:
                facts += [("languages", ", ".join(own.meta.labels), ", ".join(labels))]
        for what, found, wanted in facts:
            if found != wanted:
                raise UserError(
                    f"distil: the teacher {self.name} does not fit the student: its {what}: {found}, the student's: "
                    f"{wanted}; name another teacher{self._advice(what)}"
                )
        if self.settings.logits and task == "ctc" and own.meta.lang_sha256 != lang_sha256:
            raise UserError(
                f"distil: the outputs of the teacher {self.name} stand for another token set than the student's; name "
                f"a teacher that was trained with the same lang{self._advice('task')}"
            )

    def _advice(self, what: str) -> str:
        if what in ("task", "languages", "number of outputs"):
            return ", such as a method of the experiment, or set logits: 0 and a weight for hidden"
        return ", or set hidden: 0" if what in ("width of the encoder", "encoder layers") else ""


def encoder_layers(model: SpeechModel) -> list[nn.Module]:
    """The transformer (or conformer) layers of the encoder, in order."""
    return list(model.body.get_submodule("encoder.layers"))


@contextlib.contextmanager
def outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that gets the output (B, F, D) of each of ``layers``, in the order of their calls inside."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield found
    finally:
        # Before the backward pass, in which gradient checkpointing calls the layers again.
        for handle in handles:
            handle.remove()


# -- the objective -----------------------------------------------------------------------------------------------------


class Distilled(Objective):
    """An objective with the terms of a teacher, while the model trains; on dev only that of the ``plain`` objective.

    Shares its losses with ``plain``. Raises UserError if the task's loss has no logits to compare.
    """

    def __init__(self, plain: Objective, teacher: Teacher):
        settings = teacher.settings
        weights = {name: getattr(settings, name) for name in ("logits", "hidden") if getattr(settings, name)}
        # The task's weight is 1 in every plain objective.
        super().__init__((settings.transcripts, *plain.weights[1:], *weights.values()), plain.losses, plain.materials)
        self.shown, self._plain = tuple(weights), plain.weights
        # A list, because an attribute would make it a part of this module, with its weights in the state.
        self._teacher = [teacher]
        if settings.logits and type(self.task).logits is Loss.logits:
            raise UserError(f"distil.logits: the loss {self.task.name!r} has no logits to compare; set logits: 0")

    @property
    def teacher(self) -> Teacher:
        return self._teacher[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Distilled":
        """Moves the teacher with the objective (``to``)."""
        self.teacher.model._apply(fn)
        return super()._apply(fn, recurse)

    def forward(
        self, model: SpeechModel, features: Tensor, lengths: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> Losses:
        """As in the base class; the terms of the teacher are the last ones."""
        if not model.training:
            return summed(self._plain, self.terms(model, *model.states(features, lengths), cuts, errors))
        hidden = bool(self.teacher.settings.hidden)
        with outputs_of(encoder_layers(model) if hidden else ()) as own:
            states, frames = model.states(features, lengths)
        found = self.terms(model, states, frames, cuts, errors)
        with torch.no_grad(), outputs_of(encoder_layers(self.teacher.model) if hidden else ()) as theirs:
            encoded = self.teacher.model.states(features, lengths)
        if self.teacher.settings.logits:
            found.append(self.apart(model, found[0].logits, (states, frames), encoded, cuts))
        if hidden:
            inside = model.layer_lengths(features, lengths)
            with torch.autocast(features.device.type, enabled=False):
                apart = torch.stack([relative_error(s, t, inside) for s, t in zip(own, theirs, strict=True)]).mean()
            found.append(Term(apart, int(inside.sum())))
        return summed(self.weights, found)

    def apart(
        self, model: SpeechModel, logits: Tensor | None, own: Encoded, theirs: Encoded, cuts: Sequence[Any]
    ) -> Term:
        """The divergence between ``model`` and the teacher, from what their encoders compute, ``own`` and ``theirs``.

        ``logits``: those of ``model``, if they are known.
        """
        (states, frames), target = own, self._targets(cuts)[0]
        if logits is None:
            logits = self.task.logits(model, states, frames, target)
        with torch.no_grad():
            wanted = self.task.logits(self.teacher.model, *theirs, target)
        chosen = self.task.predicted(target, frames, states.shape[1])
        with torch.autocast(states.device.type, enabled=False):
            found = divergence(logits[chosen], wanted[chosen], self.teacher.settings.temperature)
        return Term(found.sum() / max(len(found), 1), len(found))

    def units(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        return super().units(model, batch) + self.units_of_teacher(model, batch)

    def units_of_teacher(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        """The units of the teacher's terms; see ``units``."""
        counts, features, lengths = [], batch["features"], batch["lengths"]
        if self.teacher.settings.logits:
            frames = model.output_lengths(features, lengths).cpu()
            target = self._targets(batch["cuts"])[0]
            counts.append(int(self.task.predicted(target, frames, int(frames.max())).sum()))
        if self.teacher.settings.hidden:
            counts.append(int(model.layer_lengths(features, lengths).sum()))
        return counts
