"""The constraint's share of a training step: low-rank XLS-R 300M (feed-forward at rank 512), one utterance of 5 s.

A step is forward, CTC loss, backward, and AdamW (fused), float32. In training each of the 48 layers is drawn with
probability 1/4; here all are updated after every step, and a quarter of that time is counted: what a step costs on
average. Steps and updates alternate. "float32 alone" is what a CPU without AMX does: no bfloat16 near the goal.

python benchmarks/constraint.py
"""

import statistics

import torch

import timing
from lowrank_speech.lowrank import constraint as module
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
    hf = build("ctc", Wav2Vec2Config(**PRESETS["xls-r-300m"].config, layerdrop=0.0))
    found = count(preset="xls-r-300m", layers="ffn", rank=512)
    plan = {f"wav2vec2.{row['name']}": row["rank"] for row in found["layers"]}
    apply_plan(hf, plan)
    for name in plan:
        layer = hf.get_submodule(name)
        torch.nn.init.orthogonal_(layer.first.weight)
        torch.nn.init.normal_(layer.second.weight, std=0.02)
        torch.nn.init.zeros_(layer.second.bias)
    return SpeechModel(hf.to(device).train(), Meta("wav2vec2", "ctc", plan))


def share(device: str, rounds: int) -> list[dict]:
    """The rows of a device."""
    model = low_rank_model(device)
    for parameter in model.front_end():
        parameter.requires_grad_(False)
    constraint = SemiOrthogonal(model, probability=1.0)
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

    fast = module.AMX and device == "cpu"

    def update(amx: bool) -> None:
        module.AMX = amx
        constraint.step()

    # A step before each kind of update, so that both find the same way to go.
    works = [step, lambda: update(fast), step, lambda: update(False)] if fast else [step, lambda: update(False)]
    times = timing.interleaved(works, rounds, device)
    steps = [t for column in times[::2] for t in column]
    kinds = (["bfloat16 near the goal"] if fast else []) + ["float32 alone"]
    rows = []
    for kind, updates in zip(kinds, times[1::2], strict=True):
        step_time, update_time = statistics.median(steps), statistics.median(updates)
        row = {"device": device, "kind": kind, "step s": step_time, "all 48 layers s": update_time}
        rows.append(row | {"share %": 100 * update_time / 4 / step_time})
    return rows


def main() -> None:
    arguments = timing.options(__doc__, rounds=9).parse_args()
    rows = [row for device in timing.devices() for row in share(device, arguments.rounds)]
    timing.show("constraint in a training step", rows, arguments.json)


if __name__ == "__main__":
    main()
