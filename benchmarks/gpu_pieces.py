"""The pieces of benchmarks/gpu.py: what each runs, how long it takes on an H100, what it needs, where its rows are.

Imports only the standard library.
"""

import importlib.util
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent
MODELS = ("torch", "transformers", "lhotse", "pydantic", "soundfile", "safetensors")
TRAINERS = (*MODELS, "peft", "accelerate", "h5py")
WORKFLOW = (*TRAINERS, "snakemake", "kaldialign", "pandas", "scipy", "matplotlib", "jinja2", "jsonschema")
CONTINUES = ("grid",)  # kinds that go on where the last call stopped
CONFIG = "workflow/experiments/whisper.yaml"

OURS = ("and compiled", "and checkpointing")
WAV2VEC2_ROWS = ("trainer", "trainer, by length", "trainer, by length, compiled", "+ front end stored", *OURS)
WHISPER_ROWS = ("trainer", "trainer, compiled", "ours, same batches", "+ a short window", *OURS)
VARIANTS = ("dense-full", "lowrank-full", "lora", "lowrank-lora")
PRESETS = {"xls-r-300m": ("XLS-R 300M", WAV2VEC2_ROWS), "whisper-medium": ("Whisper medium", WHISPER_ROWS)}


@dataclass(frozen=True)
class Piece:
    """One measurement. ``seconds``: estimate; ``command``: from the file for its rows; ``expected``: their names."""

    name: str
    kind: str
    title: str
    seconds: float
    command: Callable[[Path], list[str]]
    modules: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    cuda: bool = True
    expected: tuple[str, ...] = ()
    rows: Callable[[Path, str], list[dict]] = field(default=lambda path, text: json_lines(path))

    def lacks(self) -> list[str]:
        """What the piece needs and this machine does not have."""
        found = [name for name in self.modules if importlib.util.find_spec(name) is None]
        found += [f"${name} (a folder)" for name in self.variables if not Path(os.environ.get(name) or "/-").is_dir()]
        found += [path for path in self.files if not (BENCHMARKS.parent / path).is_file()]
        return found + (["a GPU that torch sees"] if self.cuda and not found and not sees_cuda() else [])


def sees_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def json_lines(path: Path) -> list[dict]:
    """The rows that a benchmark appended to its --json file."""
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not found:
        raise ValueError(f"{path} is empty")
    return found


def counted(_: Path, text: str) -> list[dict]:
    """Passed, failed and skipped tests from pytest's last line."""
    last = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", text, re.MULTILINE)
    if not last:
        raise ValueError("pytest printed no summary")
    numbers = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last[-1])}
    return [{key: numbers.get(key, 0) for key in ("passed", "failed", "skipped")}]


def pieces(rehearse: bool, out: Path) -> list[Piece]:
    """All pieces in the order in which they run."""
    found = [tests(rehearse)]
    for preset in PRESETS:
        for precision in ("fp32", "bf16"):
            found += [training(preset, precision, method, rehearse) for method in ("full", "lora")]
    return [*found, memory(rehearse), constraint(rehearse), *inference(rehearse), grid(rehearse, out)]


def script(name: str, *options: object) -> Callable[[Path], list[str]]:
    start = [sys.executable, str(BENCHMARKS / f"{name}.py"), *map(str, options)]
    return lambda rows: [*start, "--json", str(rows)]


def tests(rehearse: bool) -> Piece:
    root = BENCHMARKS.parent / "tests"
    marked = sorted(str(path) for path in root.glob("test_*.py") if "mark.gpu" in path.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *marked]
    return Piece(
        "tests", "tests", "Tests that need CUDA", 120, lambda _: command, (*TRAINERS, "pytest"), cuda=not rehearse,
        rows=counted,
    )  # fmt: skip


def training(preset: str, precision: str, method: str, rehearse: bool) -> Piece:
    title, rows = PRESETS[preset]
    whisper = "whisper" in preset
    if rehearse:
        # Compiling takes minutes on a CPU, so only one piece does it.
        compiled = ["and compiled"] if (preset, precision, method) == ("xls-r-300m", "fp32", "full") else []
        rows = ["trainer", "+ a short window"] if whisper else ["trainer, by length", "+ front end stored"]
        rows += compiled
        options = ["--preset", "tiny-whisper" if whisper else "tiny", "--device", "cpu"]
        options += ["--utterances", 8, "--batch", 4]
    else:
        options = ["--preset", preset, "--device", "cuda", "--workers", 4]
        options += ["--utterances", 128, "--batch", 8] if whisper else ["--utterances", 480, "--batch", 16]
    options += ["--precision", precision, "--methods", method, "--rows", *rows]
    name = f"training-{preset}-{precision}-{method}"
    title = f"Training {title}, {precision}, {'dense full fine-tuning' if method == 'full' else 'LoRA of rank 8'}"
    estimate = 60 if rehearse else 300 if whisper else 240
    command = script("bench_trainer", *options)
    return Piece(name, "training", title, estimate, command, TRAINERS, cuda=not rehearse, expected=tuple(rows))


def memory(rehearse: bool) -> Piece:
    size = ["--layers", 1, "--seconds", 1] if rehearse else ["--utterances", 16, "--seconds", 5, "--device", "cuda"]
    command = script("bench_memory", *size, "--repeats", 1 if rehearse else 5, "--variants", *VARIANTS)
    title = "Memory of a training step, XLS-R 300M, 80 s per batch, fp32"
    return Piece("memory", "memory", title, 150, command, TRAINERS, cuda=not rehearse, expected=VARIANTS)


def constraint(rehearse: bool) -> Piece:
    size = ["--layers", 1, "--rounds", 1, "--utterances", 1] if rehearse else ["--utterances", 1, 4, 16]
    command = script("constraint", *size, "--device", "cpu" if rehearse else "cuda")
    title = "The constraint's share of a training step, XLS-R 300M at rank 512"
    return Piece("constraint", "constraint", title, 60, command, MODELS, cuda=not rehearse, expected=("only float32",))


def inference(rehearse: bool) -> list[Piece]:
    found = []
    for preset, title in (("xls-r-300m", "XLS-R 300M"), ("whisper-medium", "Whisper medium")):
        for dtype in ("fp32", "bf16"):
            if rehearse and dtype == "bf16":
                continue
            size = ["--layers", 1, "--utterances", 2, "--rounds", 1, "--tokens", 3, "--device", "cpu"]
            if not rehearse:
                size = ["--utterances", 200 if preset == "xls-r-300m" else 40, "--seconds", 80, "--device", "cuda"]
            shape = preset.replace("medium", "tiny") if rehearse else preset
            command = script("bench_inference", "--preset", shape, "--dtype", dtype, *size)
            found.append(
                Piece(
                    f"inference-{preset}-{dtype}",
                    "inference",
                    f"Recognition, dense and factorised (-24 % of the feed-forward layers), {title}, {dtype}",
                    120,
                    command,
                    MODELS,
                    cuda=not rehearse,
                    expected=("dense", "low rank"),
                )
            )
    return found


def grid(rehearse: bool, out: Path) -> Piece:
    """The experiment of Whisper base; Snakemake goes on where the last call stopped. Its folder is OUT/whisper."""
    results = out / "whisper"

    def command(_: Path) -> list[str]:
        config = out / "whisper.yaml"
        text = (BENCHMARKS.parent / CONFIG).read_text(encoding="utf-8")
        config.write_text(re.sub(r"(?m)^output:.*$", lambda _: f"output: {json.dumps(str(results))}", text))
        start = [sys.executable, "-m", "lowrank_speech.workflow.launch", str(config)]
        dry = ["--dry-run"] if rehearse else []
        return [*start, *dry, "--cores", "all", "--workflow-profile", "workflow/profiles/workstation"]

    def rows(_: Path, text: str) -> list[dict]:
        if rehearse:
            return [{"jobs": text.count("rule ")}]
        return [{"table": (results / "report" / "results.txt").read_text(encoding="utf-8")}]

    return Piece(
        "grid",
        "grid",
        f"Whisper base, {CONFIG}",
        240,
        command,
        WORKFLOW,
        ("SPEECH_DATA", "SPEECH_MODELS"),
        (CONFIG,),
        cuda=not rehearse,
        rows=rows,
    )
