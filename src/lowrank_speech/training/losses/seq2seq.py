"""Whisper's cross-entropy with teacher forcing, per token. Dev metric: token error rate under teacher forcing."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.lang.select import Reason
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.loss import Errors, Loss, Term, Utterance

IGNORE = -100


class Seq2seq(Loss):
    name = "seq2seq"
    tasks = ("seq2seq",)

    def prepare(self, utterance: Utterance) -> list[list[int]] | Reason:
        """The tokens of the prompt, and those of the text with the end token."""
        tokens, limit = self.materials.tokens, self.materials.positions
        if isinstance(utterance.text, Reason):
            return utterance.text
        language = utterance.language
        if tokens.language_ids:  # English-only models have no language token in their prompt
            language = nearest_language(language, tokens.language_ids)
            if language is None:
                return Reason(
                    "unknown language",
                    f"{utterance.language!r}; the model knows {', '.join(sorted(tokens.language_ids))}",
                )
        prompt, text = tokens.prompt(language), [*tokens.encode(utterance.text, utterance.language), tokens.eot]
        read = len(prompt) + len(text) - 1  # the decoder reads all tokens but the last
        if limit is not None and read > limit:
            return Reason("text longer than the decoder", f"{read} tokens, the decoder takes at most {limit}")
        return [prompt, text]

    def untranscribed(self, tokens: Sequence[int] | None) -> list[list[int]] | None:
        """The tokens of the prompt, and the others with the end token."""
        if tokens is None:
            return None
        known = self.materials.tokens
        prompt = len(known.prompt(next(iter(known.language_ids), None)))
        return [list(tokens[:prompt]), [*tokens[prompt:], known.eot]]

    def collate(self, targets: Sequence[list[list[int]]]) -> tuple[Tensor, Tensor]:
        """Decoder input (B, L) and labels (B, L), int64: prompt, text, end of text.

        The loss ignores the labels of the prompt (IGNORE), except for the language token: Whisper detects languages
        from ``[sot] -> language``.
        """
        longest = max(len(prompt) + len(text) for prompt, text in targets) - 1
        inputs = torch.full((len(targets), longest), self.materials.tokens.eot)
        labels = torch.full((len(targets), longest), IGNORE)
        for i, (prompt, text) in enumerate(targets):
            whole = prompt + text
            inputs[i, : len(whole) - 1] = torch.tensor(whole[:-1])
            labels[i, len(prompt) - 1 : len(whole) - 1] = torch.tensor(text)
            labels[i, 0] = whole[1]
        return inputs, labels

    def forward(
        self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor], errors: bool = False
    ) -> Term:
        labels = target[1].to(states.device)
        logits = self.logits(model, states, frames, target)
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORE,
            label_smoothing=self.materials.recipe.label_smoothing,
        )
        found = self.errors(logits, frames, target) if errors else None
        return Term(loss, int((labels != IGNORE).sum()), errors=found, logits=logits)

    def units(self, target: tuple[Tensor, Tensor], frames: Callable[[], Tensor]) -> int:
        return int((target[1] != IGNORE).sum())

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return model.decoder_logits(states, target[0].to(states.device))

    def predicted(self, target: tuple[Tensor, Tensor], frames: Tensor, size: int) -> Tensor:
        return (target[1] != IGNORE).to(frames.device)

    def errors(self, logits: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Errors:
        """Count the target tokens that differ from the argmax of ``logits`` (B, L, V)."""
        best, labels = logits.argmax(-1).cpu(), target[1]
        learnt = labels != IGNORE
        return Errors(int(((best != labels) & learnt).sum()), int(learnt.sum()))
