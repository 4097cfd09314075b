"""One pass of transformers' ``generate`` over windows of speech: greedy, beam search, or one sample.

This calls the search of ``GenerationMixin`` with encoder states and prompts. Whisper's own ``generate``, which calls
it too, adds temperature fallback and long recordings, but there the result of an utterance depends on its batch
(transformers 5.24): once one utterance falls back, beam search ends for the whole batch; ``should_skip`` is not mapped
back to the rows of the batch; only the first row decides whether the others see their earlier text; samples come from
one generator. ``whisper.search`` and ``whisper.sequential`` do that part.

B batch, T encoder frames, D hidden size, L prompt length, V vocabulary.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import SuppressTokensLogitsProcessor, WhisperTimeStampLogitsProcessor
from transformers.modeling_outputs import BaseModelOutput

from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.decoding.whisper.stopping import Stop
from lowrank_speech.models.speech import SpeechModel


@dataclass(frozen=True)
class Options:
    """How to search. ``nbest``: number of results for each row; ``fused``: see ``whisper.fusion``."""

    beam: int = 1
    nbest: int = 1
    length_penalty: float = 1.0
    timestamps: bool = False
    loops: bool = True
    fused: Callable[[int], LogitsProcessor] | None = None


@dataclass(frozen=True)
class Generated:
    """``tokens``: without prompt and end of text, with time stamps; ``score``: log probability with the end of text."""

    tokens: list[int]
    score: float
    stopped: str | None


def generate(
    model: SpeechModel,
    codes: Codes,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    bounds: Sequence[int],
    options: Options,
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
) -> list[list[Generated]]:
    """The results of each row, the best first, for encoder ``states`` (B, T, D) and B ``prompts`` of equal length.

    ``bounds``: maximum number of tokens of each row. ``temperature`` above 0: draw a sample of each row instead, with a
    generator of its own (``seeds``).
    """
    # Silence warnings about arguments, which would come with each batch.
    logging.getLogger("transformers.generation").setLevel(logging.ERROR)
    device, width = states.device, len(prompts[0])
    beam, nbest = (1, 1) if temperature > 0 else (options.beam, options.nbest)
    # A hypothesis that was stopped may come before those that ended by themselves, so take all.
    kept = beam if beam > 1 else 1
    config = copy.deepcopy(model.hf.generation_config)
    settings = {"num_beams": beam, "num_return_sequences": kept, "do_sample": False, "use_cache": True}
    settings |= {"max_new_tokens": max(bounds), "max_length": None, "pad_token_id": codes.eot}
    settings |= {"eos_token_id": codes.eot, "length_penalty": options.length_penalty, "early_stopping": False}
    settings |= {"return_dict_in_generate": True, "output_scores": False, "temperature": 1.0}
    config.update(**settings)
    stop = Stop(bounds, codes.eot, options.loops, width)
    steps = Steps(beam, temperature, seeds, options.fused is not None)
    processors = _timestamps(model, codes, config, width) if options.timestamps else []
    processors += [options.fused(width)] if options.fused else []
    out = GenerationMixin.generate(
        model.hf,
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        decoder_input_ids=torch.tensor([list(prompt) for prompt in prompts], device=device),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([stop]),
        logits_processor=LogitsProcessorList([*processors, steps]),
    )
    rows = out.sequences[:, width:].tolist()
    parents = out.beam_indices.tolist() if beam > 1 else None
    found: list[list[Generated]] = [[] for _ in prompts]
    for number, row in enumerate(rows):
        ended = codes.eot in row
        tokens = row[: row.index(codes.eot)] if ended else row
        why = stop.reason(tokens, ended, number // kept)
        counted = row[: len(tokens) + (why is None)]
        score = steps.log_prob(counted, parents[number] if parents else [number] * len(counted))
        if score > float("-inf"):  # a beam that was never filled
            found[number // kept].append(Generated(tokens, score, why))
    return [_best(row, codes, nbest) for row in found]


def _best(row: list[Generated], codes: Codes, number: int) -> list[Generated]:
    """Those that ended by themselves first, in the order of the search; the same text only once."""
    seen: dict[tuple[int, ...], Generated] = {}
    for found in sorted(row, key=lambda found: found.stopped is not None):
        seen.setdefault(tuple(codes.written(found.tokens)), found)
    return list(seen.values())[:number]


def _timestamps(model: SpeechModel, codes: Codes, config: Any, width: int) -> list[LogitsProcessor]:
    """Whisper's rules for time stamps, which may not lie beyond the window."""
    last = codes.first_time + model.config.max_source_positions
    beyond = list(range(last + 1, codes.first_time + codes.times))
    device = model.hf.device
    rules = [WhisperTimeStampLogitsProcessor(config, begin_index=width)]
    return [SuppressTokensLogitsProcessor(beyond, device=device), *rules] if beyond else rules


class Steps(LogitsProcessor):
    """The last processor: normalises scores, draws samples, and records the log probabilities of possible choices.

    Beam search chooses among the 2 x ``beam`` best tokens of each row. Recording only those needs far less memory than
    generate()'s ``output_scores``. ``fused``: scores are log probabilities to which others were added, so they are not
    normalised again.
    """

    def __init__(self, beam: int, temperature: float, seeds: Sequence[int] | None, fused: bool = False):
        self.beam, self.temperature, self.fused = beam, temperature, fused
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds or ()]
        self.tokens: list[Tensor] = []
        self.values: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.beam > 1:
            scores = scores.float() if self.fused else scores.float().log_softmax(-1)
            values, tokens = scores.topk(min(2 * self.beam, scores.shape[-1]))
        elif self.temperature > 0:
            log_probs = scores.float() if self.fused else scores.float().log_softmax(-1)
            # The argmax of logits plus Gumbel noise is a sample.
            uniform = [torch.rand(scores.shape[-1], generator=g, dtype=torch.float64) for g in self.generators]
            noise = -(-torch.stack(uniform).clamp(min=1e-300).log()).log()
            scores = log_probs.double() / self.temperature + noise.to(scores.device)
            tokens = scores.argmax(-1, keepdim=True)
            values = log_probs.gather(-1, tokens)
        else:
            tokens = scores.argmax(-1, keepdim=True)
            values = (scores.amax(-1) - (0 if self.fused else scores.logsumexp(-1)))[:, None]
        self.tokens.append(tokens)
        self.values.append(values.double())
        return scores

    def log_prob(self, tokens: Sequence[int], rows: Sequence[int]) -> float:
        """Log probability of ``tokens``, where ``rows`` has the row that each was chosen in; -inf: not a choice."""
        total = 0.0
        for step, (token, row) in enumerate(zip(tokens, rows, strict=False)):
            place = (self._host(step)[0][row] == token).nonzero()
            if not len(place):
                return float("-inf")
            total += float(self._host(step)[1][row, place[0, 0]])
        return total

    def _host(self, step: int) -> tuple[Tensor, Tensor]:
        if self.tokens[step].device.type != "cpu":
            self.tokens[step], self.values[step] = self.tokens[step].cpu(), self.values[step].cpu()
        return self.tokens[step], self.values[step]
