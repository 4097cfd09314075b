"""Memory and time of one training step of XLS-R 300M in the variants of the paper.

python benchmarks/bench_memory.py --threads 1                     # all variants, one after the other, as a table
python benchmarks/bench_memory.py --variant dense-full            # one variant, as JSON
python benchmarks/bench_memory.py --preset hubert-large --layers 4 --seconds 2

Random weights, CTC on a batch of --utterances x --seconds of noise. Each variant runs in its own process and needs up
to 6 GB. The variant with 8-bit AdamW needs bitsandbytes. Exact sizes of tensors, in MiB:

    weights      parameters and buffers
    gradients    of the trained parameters
    optimiser    AdamW's state
    activations  peak of all other tensors during forward and backward: those saved for the backward pass, a layer's
                 recomputed activations under checkpointing, and temporary ones
    sum          of the four: the peak when gradients of several batches are accumulated
    at once      the peak for a single batch, whose gradients replace activations during the backward pass
    rss          peak memory of the process during the steps (VmHWM, reset before), with libraries and allocator
    CUDA         max_memory_allocated during the steps, only with --device cuda

The time per step is the median over --repeats, after one warm-up step.
"""

import argparse
import importlib.util
import json
import statistics
import weakref
from functools import partial
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import speech
import timing
from lowrank_speech.errors import UserError
from lowrank_speech.models.device import pick_device

MIB = 2**20
# low rank (feed-forward layers at half of the width: 512, -24 %), LoRA, further keys of the training config
VARIANTS = {
    "dense-full": (False, False, {}),
    "lowrank-full": (True, False, {}),
    "lora": (False, True, {}),
    "lowrank-lora": (True, True, {}),
    "lowrank-lora-checkpointing": (True, True, {"gradient_checkpointing": True}),
    "lowrank-lora-checkpointing-bf16": (
        True,
        True,
        {"gradient_checkpointing": True, "precision": "bf16", "frozen_dtype": "bf16"},
    ),
    "the same, 8-bit AdamW": (
        True,
        True,
        {"gradient_checkpointing": True, "precision": "bf16", "frozen_dtype": "bf16", "optimiser": "adamw8bit"},
    ),
}
WITHOUT = "bitsandbytes is not installed: pip install -e '.[8bit]'"
PARTS = ("weights", "gradients", "optimiser", "activations", "sum", "at once", "rss")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Alive(TorchDispatchMode):
    """Records when operations create storages and when these are freed."""

    def __init__(self):
        super().__init__()
        self.events, self._known = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known and id(storage) not in given:
                    self._begin(storage)
        return out

    def _begin(self, storage):
        key, number, size = id(storage), len(self.events), storage.nbytes()
        self._known[key] = number

        def end():
            self._known.pop(key, None)
            self.events.append((number, -size))

        self.events.append((number, size))
        weakref.finalize(storage, end)

    def peak(self, without):
        """Peak bytes of the recorded storages, except those of the tensors ``without``, which must still exist."""
        left_out = {self._known.get(id(t.untyped_storage())) for t in without}
        alive = most = 0
        for number, size in self.events:
            alive += 0 if number in left_out else size
            most = max(most, alive)
        return most


def possible(variant):
    """Whether the packages that a variant needs are installed."""
    eight = VARIANTS[variant][2].get("optimiser") == "adamw8bit"
    return not eight or importlib.util.find_spec("bitsandbytes") is not None


def build(arguments):
    """The stepper of a variant."""
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
    from lowrank_speech.lang.tokens import CharTokens
    from lowrank_speech.lowrank.lora_settings import LoraSettings
    from lowrank_speech.lowrank.structure import apply_plan
    from lowrank_speech.models.build import build as build_model
    from lowrank_speech.models.dropout import set_dropout
    from lowrank_speech.models.layers import dense_layers
    from lowrank_speech.training.adapt import freeze_for, lora_on
    from lowrank_speech.training.config import TrainConfig
    from lowrank_speech.training.losses.loss import Materials
    from lowrank_speech.training.losses.objective import make_objective
    from lowrank_speech.training.memory.layers import checkpoint_layers
    from lowrank_speech.training.memory.precision import FrozenWeights
    from lowrank_speech.training.step import Stepper

    torch.manual_seed(1)
    low_rank, with_lora, settings = VARIANTS[arguments.variant]
    _, config = speech.shape(arguments.preset, arguments.layers, "wav2vec2")
    model = build_model("ctc", config)
    if low_rank:
        plan = dict.fromkeys(dense_layers(model, "ffn"), config.hidden_size // 2)
        apply_plan(model.body, plan)
        for name in plan:
            for part in (model.body.get_submodule(name).first, model.body.get_submodule(name).second):
                torch.nn.init.normal_(part.weight, std=0.02)
            torch.nn.init.zeros_(part.bias)
    freeze_for(model, "lora" if with_lora else "full", trains_head=True)
    if with_lora:
        lora_on(model, LoraSettings(rank=8))
    recipe = TrainConfig(**settings)
    lang = Lang("char", CharTokens.build(LETTERS), ("en",), Normaliser(NormaliseConfig()), "0" * 64)
    objective = make_objective("ctc", Materials(recipe, lang, lang.tokens, device=arguments.device)).build(model)
    if recipe.frozen_dtype != "fp32":
        FrozenWeights(model, torch.bfloat16, None).hold()
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)
    set_dropout(model, arguments.dropout)
    model.to(arguments.device).train()
    return Stepper(model, objective.to(arguments.device), recipe, torch.device(arguments.device), 1)


def measure(arguments):
    """Measure one variant in this process; returns a row of the table."""
    utterances, seconds = arguments.utterances, arguments.seconds
    from lowrank_speech.training.memory.bytes import byte_counts

    torch.set_num_threads(arguments.threads)
    stepper = build(arguments)
    ids = stepper.objective.materials.lang.tokens.encode(LETTERS[: int(5 * seconds)])
    targets = {"targets": {"ctc": ids}}
    cuts = [SimpleNamespace(id=f"u{i}", duration=seconds, custom=targets) for i in range(utterances)]
    lengths = torch.full((utterances,), int(16_000 * seconds))
    batch = {"cuts": cuts, "features": torch.randn(utterances, int(lengths[0])), "lengths": lengths}
    clock = speech.Clock(arguments.device)
    clock.begin()
    step = partial(stepper.step, [batch], 100)
    times = [timing.seconds(step, arguments.device) for _ in range(arguments.repeats + 1)]
    clock.end()
    with Alive() as alive:
        total = stepper.losses(batch).total
        total.backward()
    gradients = [p.grad for p in stepper.parameters if p.grad is not None]
    del total
    found = byte_counts((stepper.model, stepper.objective), stepper.optimiser)
    assert found["gradients"] == sum(g.nbytes for g in gradients)
    found |= {"activations": alive.peak(gradients)}
    return {
        **found,
        "sum": sum(found.values()),
        "at once": found["weights"] + found["optimiser"] + alive.peak([]),
        "rss": clock.rss,
        "CUDA": clock.cuda,
        "trained": sum(p.numel() for p in stepper.parameters),
        "seconds": statistics.median(times[1:]),
        "threads": torch.get_num_threads(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, help="run only this variant, print JSON")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: cpu")
    parser.add_argument("--json", type=timing.file, metavar="FILE", help="append the rows as JSON lines, in bytes")
    parser.add_argument("--preset", default="xls-r-300m", help="a model of the wav2vec 2.0 family; default: xls-r-300m")
    parser.add_argument("--layers", type=timing.positive(int), help="use fewer layers")
    parser.add_argument("--utterances", type=timing.positive(int), default=1, help="default: 1")
    parser.add_argument("--seconds", type=timing.at_least(0.1, float), default=5.0, help="per utterance; default: 5")
    parser.add_argument("--repeats", type=timing.positive(int), default=3, help="default: 3")
    parser.add_argument("--dropout", type=timing.at_least(0, float), default=0.0, help="in all layers; default: 0")
    parser.add_argument("--threads", type=timing.positive(int), default=1, help="default: 1")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(SimpleNamespace(**arguments.child))))
        return
    if arguments.dropout >= 1:
        parser.error(f"argument --dropout: {arguments.dropout:g} is not valid; it must be below 1")
    pick_device(arguments.device)
    speech.shape(arguments.preset, arguments.layers, "wav2vec2")
    if arguments.variant:
        if not possible(arguments.variant):
            raise UserError(f"--variant {arguments.variant}: {WITHOUT}")
        print(json.dumps(measure(arguments)))
        return
    model = arguments.preset + (f" with {arguments.layers} layers" if arguments.layers else "")
    shape = f"{model}, {arguments.utterances} x {arguments.seconds:g} s, dropout {arguments.dropout:g}"
    print(f"{shape}, {arguments.threads} thread(s), torch {torch.__version__}\n")
    parts = (*PARTS, *(["CUDA"] if arguments.device == "cuda" else []))
    print("| variant | trained M | " + " | ".join(parts) + " | s per step | sum / dense | at once / dense |")
    print("|---" * (len(parts) + 5) + "|")
    first = None
    for name in filter(possible, arguments.variants):
        found = speech.own_process(__file__, {"variant": name}, arguments)
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"benchmark": shape, "variant": name, **found}) + "\n")
        first = first or found
        cells = [f"{found['trained'] / 1e6:.1f}", *(f"{found[part] / MIB:.0f}" for part in parts)]
        cells += [f"{found['seconds']:.2f}", *(f"{found[part] / first[part]:.1%}" for part in ("sum", "at once"))]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    for name in arguments.variants:
        if not possible(name):
            print(f"\nleft out: {name} ({WITHOUT})")


if __name__ == "__main__":
    timing.run(main)
