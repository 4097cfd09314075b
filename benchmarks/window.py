"""Time and memory that a shorter window (`bases.<name>.window`) saves Whisper on a short utterance.

python benchmarks/window.py                                       # Whisper small, 5 s, windows of 30 and 10 s
python benchmarks/window.py --preset whisper-tiny --windows 30 6 --rounds 5

The preset's shape with random weights, float32, batches of one. The windows take turns on one model, which only changes
its positional embeddings:

    encode       log-mel -> encoder states
    decode       encode, then greedy decoding of --tokens tokens with transformers' `generate`
    step         full fine-tuning step on --tokens tokens: forward, backward, fused AdamW
    activations  exact peak memory of forward and backward, except weights and gradients

Times in seconds, ratios to the first window: medians over the rounds of one run.
"""

import statistics
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import speech
from bench_memory import MIB, Alive
from lowrank_speech.features.logmel import log_mel
from lowrank_speech.models.build import build
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.models.window import shorten
from timing import at_least, interleaved, options, positive, ratio, run, show


class Bench:
    """One model with several windows, and one utterance."""

    def __init__(self, preset: str, windows: list[float], seconds: float, tokens: int):
        from transformers import logging as hf_logging

        hf_logging.set_verbosity_error()
        torch.manual_seed(1)
        found, config = speech.shape(preset, None, "whisper")
        speech.check_tokens(tokens, config)
        self.model = build(found.task, config)
        set_dropout(self.model, 0.0)
        self.tables: dict[float, nn.Embedding] = {}
        for window in sorted(windows, reverse=True):
            shorten(self.model, window)
            self.tables[window] = self.model.body.encoder.embed_positions
        mel = log_mel(0.1 * torch.randn(int(16_000 * seconds)), self.model.config.num_mel_bins)
        self.inputs = mel[None], torch.tensor([len(mel)])
        self.tokens = torch.randint(0, 50_000, (1, tokens + 1))
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, lr=1e-6, fused=True)

    def put(self, window: float) -> None:
        encoder = self.model.body.encoder
        encoder.embed_positions = self.tables[window]
        self.model.config.max_source_positions = encoder.embed_positions.num_embeddings

    @torch.inference_mode()
    def encode(self, window: float) -> None:
        self.put(window)
        self.model.states(*self.inputs)

    @torch.inference_mode()
    def decode(self, window: float) -> None:
        self.put(window)
        exactly = self.tokens.shape[1] - 1
        mel = self.model.pad_mel(*self.inputs)
        self.model.hf.generate(input_features=mel, num_beams=1, min_new_tokens=exactly, max_new_tokens=exactly)

    def gradients(self, window: float) -> None:
        self.put(window)
        logits, _, _ = self.model.seq2seq_logits(*self.inputs, self.tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), self.tokens[0, 1:]).backward()

    def step(self, window: float) -> None:
        self.gradients(window)
        self.optimiser.step()
        self.optimiser.zero_grad()

    def activations(self, window: float) -> int:
        with Alive() as alive:
            self.gradients(window)
        most = alive.peak([p.grad for p in self.weights if p.grad is not None])
        self.optimiser.zero_grad()
        return most


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--preset", default="whisper-small", help="default: whisper-small")
    parser.add_argument("--windows", type=positive(float), nargs="+", default=[30.0, 10.0], help="s; default: 30 10")
    parser.add_argument("--seconds", type=at_least(0.1, float), default=5.0, help="length of the utterance; default: 5")
    parser.add_argument("--tokens", type=positive(int), default=24, help="length of the transcript; default: 24")
    arguments = parser.parse_args()
    windows = arguments.windows
    bench = Bench(arguments.preset, windows, arguments.seconds, arguments.tokens)
    rows = [{"window": f"{window:g} s"} for window in windows]
    for name in ("encode", "decode", "step"):
        times = interleaved([partial(getattr(bench, name), window) for window in windows], arguments.rounds)
        for row, found in zip(rows, times, strict=True):
            row |= {name: f"{statistics.median(found):.3f}", "ratio " + name: f"{ratio(found, times[0]):.2f}"}
    most = [bench.activations(window) for window in windows]
    for row, found in zip(rows, most, strict=True):
        row |= {"activations MiB": f"{found / MIB:.0f}", "ratio activations": f"{found / most[0]:.2f}"}
    show(f"{arguments.preset}, {arguments.seconds:g} s of speech, {arguments.tokens} tokens", rows, arguments.json)


if __name__ == "__main__":
    run(main)
