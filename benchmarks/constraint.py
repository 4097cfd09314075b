"""Time of the semi-orthogonal constraint in a training step of XLS-R 300M (feed-forward at rank 512), 5 s utterances.

A step is forward, CTC loss, backward and fused AdamW in float32. Training updates each of the 48 layers with
probability 1/4 after a step; the benchmark updates all of them and counts a quarter of the time, the average cost per
step. The step's time grows with the batch, the update's does not. Steps and updates alternate. A CPU with AMX
multiplies in bfloat16 if a factor is almost orthonormal; other CPUs use only float32.

python benchmarks/constraint.py
"""

import statistics

import torch

import timing
from lowrank_speech.lowrank import constraint as module
from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.lowrank.structure import apply_plan
from lowrank_speech.models.build import build
from lowrank_speech.models.counting import count
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.presets import PRESETS
from lowrank_speech.models.speech import SpeechModel

AMX = module.AMX  # the updates below change it


def low_rank_model(device: str, layers: int) -> SpeechModel:
    """``layers`` layers of XLS-R 300M, a CTC head, random weights; the first factors are orthonormal."""
    from transformers import Wav2Vec2Config

    torch.manual_seed(0)
    shape = PRESETS["xls-r-300m"].config | {"num_hidden_layers": layers}
    model = build("ctc", Wav2Vec2Config(**shape, layerdrop=0.0))
    found = count(preset="xls-r-300m", layers="ffn", rank=512)
    built = {name for name, _ in model.body.named_modules()}
    plan = {row["name"]: row["rank"] for row in found["layers"] if row["name"] in built}
    apply_plan(model.body, plan)
    for name in plan:
        layer = model.body.get_submodule(name)
        torch.nn.init.orthogonal_(layer.first.weight)
        torch.nn.init.normal_(layer.second.weight, std=0.02)
        torch.nn.init.zeros_(layer.second.bias)
    model.plan = plan
    return model.to(device).train()


def share(device: str, rounds: int, utterances: int, layers: int) -> list[dict]:
    """The rows of one device, for batches of ``utterances``."""
    model = low_rank_model(device, layers)
    for parameter in model.front_end():
        parameter.requires_grad_(False)
    constraint = SemiOrthogonal(model, probability=1.0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=3e-5, fused=True)
    wave = torch.randn(utterances, 5 * 16_000, device=device)
    targets = torch.randint(1, 32, (utterances, 60), device=device)

    def step() -> None:
        optimiser.zero_grad()
        logits, frames = model.ctc_logits(wave, torch.full((utterances,), wave.shape[1], device=device))
        log_probs = logits.log_softmax(-1).transpose(0, 1)
        torch.nn.functional.ctc_loss(log_probs, targets, frames, torch.full((utterances,), 60)).backward()
        optimiser.step()

    fast = AMX and device == "cpu"

    def update(amx: bool) -> None:
        module.AMX = amx
        constraint.step()

    # One step before each kind of update, so that both start equally far from orthonormal.
    works = [step, lambda: update(fast), step, lambda: update(False)] if fast else [step, lambda: update(False)]
    times = timing.interleaved(works, rounds, device)
    steps = [t for column in times[::2] for t in column]
    kinds = (["bfloat16 if almost orthonormal"] if fast else []) + ["only float32"]
    rows = []
    for kind, updates in zip(kinds, times[1::2], strict=True):
        step_time, update_time = statistics.median(steps), statistics.median(updates)
        row = {
            "device": device,
            "utterances": utterances,
            "kind": kind,
            "step s": step_time,
            f"all {len(model.plan)} layers s": update_time,
        }
        rows.append(row | {"share %": 100 * update_time / 4 / step_time})
    return rows


def main() -> None:
    parser = timing.options(__doc__, rounds=9)
    parser.add_argument("--utterances", nargs="+", type=timing.positive(int), default=[1, 4], help="default: 1 4")
    parser.add_argument("--layers", type=timing.positive(int), default=24, help="fewer for a quick check; default: 24")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: both, if there is CUDA")
    arguments = parser.parse_args()
    devices = [pick_device(arguments.device).type] if arguments.device else timing.devices()
    cases = [(device, n) for device in devices for n in arguments.utterances]
    rows = [row for device, n in cases for row in share(device, arguments.rounds, n, arguments.layers)]
    timing.show("constraint in a training step", rows, arguments.json)


if __name__ == "__main__":
    timing.run(main)
