"""Factorising XLS-R 300M: time per layer compared with plain decompositions, time and memory of the whole command.

The weights are random, the shapes those of the model. For each layer these take turns: the factors with their row of
the report; ``torch.linalg.eigh`` of the smaller Gram matrix in float64, without and with computing that matrix; and
``torch.linalg.svd`` in float32. Then ``lowrank-speech factorise`` runs in its own process, whose memory is read every
20 ms. Resident memory includes pages of the mapped weights, which the kernel can reclaim; anonymous memory does not.

python benchmarks/factorise.py
python benchmarks/factorise.py --preset xls-r-2b --scratch /var/tmp    (needs 8.6 GB there, and 6.5 for the result)
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import timing
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.tensors import TensorWriter
from lowrank_speech.models.build import stored
from lowrank_speech.models.folder import model_folder
from lowrank_speech.models.presets import PRESETS, build_meta


def decompositions(rounds: int) -> list[dict]:
    """The rows, one for each shape of XLS-R 300M's feed-forward layers."""
    rows = []
    for d_out, d_in in ((4096, 1024), (1024, 4096)):
        layer = nn.Linear(d_in, d_out)
        wide = layer.weight.detach().double()
        wide = wide if d_out < d_in else wide.T
        gram = wide @ wide.T
        ours, eigh, both, svd = timing.interleaved(
            [
                lambda layer=layer: factorise(nn.Sequential(layer), {"0": 512}),
                lambda gram=gram: torch.linalg.eigh(gram),
                lambda wide=wide: torch.linalg.eigh(wide @ wide.T),
                lambda layer=layer: torch.linalg.svd(layer.weight.detach(), full_matrices=False),
            ],
            rounds,
        )
        ratios = {f"of {n}": timing.ratio(ours, t) for n, t in (("eigh", eigh), ("gram + eigh", both), ("svd", svd))}
        rows.append({"d_out": d_out, "d_in": d_in, "seconds": timing.ratio(ours, [1.0] * rounds), **ratios})
    return rows


def write_random(preset: str, folder: Path) -> int:
    """Write a model folder of the preset with random weights, tensor by tensor; returns the bytes of the weights."""
    model = build_meta(preset)
    state = {model.disk_name(name): model.state_dict()[name] for name in stored(model)}
    with (
        model_folder(model, model.meta, folder) as path,
        TensorWriter(path, {name: (t.dtype, tuple(t.shape)) for name, t in state.items()}, {"format": "pt"}) as writer,
    ):
        for name, tensor in state.items():
            writer.write(name, torch.randn(tensor.shape) * 0.02)
    return sum(t.numel() * t.element_size() for t in state.values())


def memory(process: int) -> tuple[int, int]:
    """Resident and anonymous memory of a process in bytes; zeros if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    return 1024 * int(fields.get("VmHWM", 0)), 1024 * int(fields.get("RssAnon", 0))


def command(preset: str, scratch: Path) -> dict:
    """Time and peak memory of the whole command, and the size of the model."""
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        base = Path(temporary) / "base"
        size = write_random(preset, base)
        words = ["factorise", str(base), str(Path(temporary) / "low"), "--layers", "ffn", "--reduction", "0.24"]
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "lowrank_speech.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        peaks = (0, 0)
        while process.poll() is None:
            peaks = tuple(map(max, peaks, memory(process.pid)))
            time.sleep(0.02)
        if process.returncode:
            raise SystemExit(f"the command failed: {' '.join(words)}")
        elapsed = time.perf_counter() - start
    resident, anonymous = (peak / 1e9 for peak in peaks)
    row = {"preset": preset, "seconds": elapsed, "model GB": size / 1e9, "resident GB": resident}
    return row | {"anonymous GB": anonymous, "resident of model": resident * 1e9 / size}


def main() -> None:
    parser = timing.options(__doc__, rounds=7)
    parser.add_argument("--preset", default="xls-r-300m", choices=PRESETS)
    parser.add_argument("--scratch", type=timing.folder, help="folder for the models (default: the system's)")
    arguments = parser.parse_args()
    timing.show("one layer: factors and report", decompositions(arguments.rounds), arguments.json)
    timing.show("lowrank-speech factorise", [command(arguments.preset, arguments.scratch)], arguments.json)


if __name__ == "__main__":
    timing.run(main)
