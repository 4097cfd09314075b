"""Speed of a feed-forward block (up, GELU, down) with factors at rank d / 2 compared with the dense block.

Shapes of XLS-R and Whisper, 5 s of speech (250 frames), batches of 1 and 16, forward only and with backward. float32 on
the CPU; on CUDA also bfloat16 autocast. The factors have 5/8 of the dense block's parameters and multiplications.

python benchmarks/layer.py
"""

import contextlib

import torch
from torch import nn

import timing
from lowrank_speech.lowrank.factorise import factorise

WIDTHS = {
    "XLS-R 300M, Whisper medium": 1024,
    "XLS-R 1B, Whisper large": 1280,
    "Whisper small": 768,
}
FRAMES = 250


def block(width: int, rank: int | None, device: str) -> nn.Module:
    """A feed-forward block, dense or with factors of ``rank``."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    if rank is not None:
        factorise(net, {"0": rank, "2": rank}, "random")
    return net.to(device)


def compare(name: str, width: int, batch: int, device: str, dtype: torch.dtype, rounds: int) -> dict:
    """One row of the table: milliseconds of both blocks, and their ratio."""
    dense, low = block(width, None, device), block(width, width // 2, device)
    x = torch.randn(batch, FRAMES, width, device=device, requires_grad=True)
    half = dtype != torch.float32

    def forward(net: nn.Module) -> torch.Tensor:
        with torch.autocast(device, dtype) if half else contextlib.nullcontext():
            return net(x)

    def both(net: nn.Module) -> None:
        net.zero_grad()
        forward(net).float().square().mean().backward()

    with torch.no_grad():
        alone = timing.interleaved([lambda: forward(low), lambda: forward(dense)], rounds, device)
    whole = timing.interleaved([lambda: both(low), lambda: both(dense)], rounds, device)
    milliseconds = [1000 * timing.ratio(t, [1.0] * rounds) for t in (*alone, *whole)]
    return {
        "shape": name,
        "d": width,
        "batch": batch,
        "on": f"{device} {str(dtype).removeprefix('torch.')}",
        "forward ms": milliseconds[0],
        "dense ms": milliseconds[1],
        "ratio": timing.ratio(*alone),
        "with backward ms": milliseconds[2],
        "dense ms ": milliseconds[3],
        "ratio ": timing.ratio(*whole),
    }


def main() -> None:
    arguments = timing.options(__doc__, rounds=9).parse_args()
    cases = [("cpu", torch.float32)]
    if "cuda" in timing.devices():
        cases += [("cuda", torch.float32), ("cuda", torch.bfloat16)]
    rows = [
        compare(name, width, batch, device, dtype, arguments.rounds)
        for device, dtype in cases
        for name, width in WIDTHS.items()
        for batch in (1, 16)
    ]
    timing.show("feed-forward block, r = d / 2", rows, arguments.json)


if __name__ == "__main__":
    timing.run(main)
