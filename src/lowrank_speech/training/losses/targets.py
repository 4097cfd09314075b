"""What each task learns from a cut: CTC labels, Whisper's token sequence, or a language's number."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

IGNORE = -100


def class_targets(cuts: Sequence[Any], labels: Sequence[str]) -> Tensor:
    """Numbers (B,) int64 of the cuts' languages among ``labels``."""
    index = {label: i for i, label in enumerate(labels)}
    return torch.tensor([index[cut.supervisions[0].language] for cut in cuts])


def ctc_targets(cuts: Sequence[Any], lang: Any) -> tuple[Tensor, Tensor]:
    """Labels of all cuts in one row, (sum of lengths,) int64, and lengths (B,) int64, for ``ctc_loss``."""
    encoded = [_encode(cut, lang) for cut in cuts]
    return torch.tensor([i for row in encoded for i in row]), torch.tensor([len(row) for row in encoded])


def seq2seq_targets(cuts: Sequence[Any], lang: Any, tokens: Any) -> tuple[Tensor, Tensor]:
    """Decoder input (B, L) and labels (B, L), int64: prompt, text, end of text.

    The prompt is given to the decoder and not learnt (IGNORE), but for the language token: ``[sot] -> language`` is
    what Whisper's language detection reads.
    """
    rows = []
    for cut in cuts:
        supervision = cut.supervisions[0]
        prompt = tokens.prompt(supervision.language)
        text = lang.normalise(supervision.text, supervision.language)
        rows.append((prompt, [*tokens.encode(text), tokens.eot]))
    longest = max(len(prompt) + len(text) for prompt, text in rows) - 1
    inputs = torch.full((len(rows), longest), tokens.eot)
    labels = torch.full((len(rows), longest), IGNORE)
    for i, (prompt, text) in enumerate(rows):
        whole = prompt + text
        inputs[i, : len(whole) - 1] = torch.tensor(whole[:-1])
        labels[i, len(prompt) - 1 : len(whole) - 1] = torch.tensor(text)
        labels[i, 0] = whole[1]
    return inputs, labels


def _encode(cut: Any, lang: Any) -> list[int]:
    supervision = cut.supervisions[0]
    return lang.tokens.encode(lang.normalise(supervision.text, supervision.language))
