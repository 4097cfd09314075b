"""The constraint's share of a training step: low-rank XLS-R 300M (feed-forward at rank 512), one utterance of 5 s.

A step is forward, CTC loss, backward, and AdamW (fused), float32. After each the constraint takes its turn as in
training: each layer with probability 1/4, so a single step draws between few and many of the 48. The share is the sum
of the constraint's times over the sum of those of the steps, which it alternates with.

python benchmarks/constraint.py
"""

import timing
import torch

from lowrank_speech.lowrank.apply import apply_plan
from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.models.counting import count
from lowrank_speech.models.folder import build
from lowrank_speech.models.presets import PRESETS
from lowrank_speech.models.speech import Meta, SpeechModel


def low_rank_model(device: str) -> SpeechModel:
    """XLS-R 300M with a CTC head and random weights, the first factors orthonormal."""
    from transformers import Wav2Vec2Config

    torch.manual_seed(0)
    hf = build("wav2vec2", "ctc", Wav2Vec2Config(**PRESETS["xls-r-300m"].config, layerdrop=0.0))
    found = count(preset="xls-r-300m", layers="ffn", rank=512)
    plan = {f"wav2vec2.{row['name']}": row["rank"] for row in found["layers"]}
    apply_plan(hf, plan)
    for name in plan:
        layer = hf.get_submodule(name)
        torch.nn.init.orthogonal_(layer.first.weight)
        torch.nn.init.normal_(layer.second.weight, std=0.02)
        torch.nn.init.zeros_(layer.second.bias)
    return SpeechModel(hf.to(device).train(), Meta("wav2vec2", "ctc", plan))


def share(device: str, rounds: int) -> dict:
    """The row of a device."""
    model = low_rank_model(device)
    for parameter in model.front_end():
        parameter.requires_grad_(False)
    constraint = SemiOrthogonal(model, seed=1)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-5, fused=True)
    wave = torch.randn(1, 5 * 16_000, device=device)
    targets = torch.randint(1, 32, (1, 60), device=device)

    def step() -> None:
        optimiser.zero_grad()
        logits, frames = model.ctc_logits(wave, torch.tensor([wave.shape[1]], device=device))
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        torch.nn.functional.ctc_loss(log_probs, targets, frames, torch.tensor([60])).backward()
        optimiser.step()

    steps, updates = timing.interleaved([step, constraint.step], rounds, device)
    return {
        "device": device,
        "rounds": rounds,
        "step s": sum(steps) / rounds,
        "constraint s": sum(updates) / rounds,
        "share %": 100 * sum(updates) / sum(steps),
        "largest deviation": max(constraint.deviation().values()),
    }


def main() -> None:
    arguments = timing.options(__doc__, rounds=20).parse_args()
    timing.show("constraint in a training step", [share(d, arguments.rounds) for d in timing.devices()], arguments.json)


if __name__ == "__main__":
    main()
