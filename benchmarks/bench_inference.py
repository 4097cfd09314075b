"""Recognition by a dense model against the same with factorised feed-forward layers: speed and memory.

python benchmarks/bench_inference.py                                             # XLS-R 300M at rank 512: -24 %
python benchmarks/bench_inference.py --preset whisper-small --utterances 6       # rank 384, of encoder and decoder
python benchmarks/bench_inference.py --dtype bf16 --utterances 400 --seconds 80  # where there is CUDA, there

Random weights of the true shape; noise of log-normal durations (median 3.6 s, sigma 0.35: about speechocean762's).
wav2vec 2.0 and its relatives decode greedily by CTC. Whisper gets its whole window for every utterance and writes
--tokens tokens, no more and no less, since random weights know no end. Inputs are computed before; --stored leaves the
convolutional front end out as well, as with `features: conv`. Rank: half of the width, unless --rank says another.

    batch        utterances one by one, or batches of --seconds of speech, padding included, by duration
    s/s          seconds of speech per second on the clock
    weights MB   exact, of all parameters and buffers
    MB           the process's peak during a pass (VmHWM, set back before it), each row in a process of its own
    CUDA MB      max_memory_allocated of that process
    x            against the dense model's row

Both models are in one process for the speed, and pass over the utterances in turn; x speed is the median over --rounds
of the ratios within a round.
"""

import argparse
import json
import statistics
from types import SimpleNamespace

import numpy as np
import torch

import speech
import timing
from lowrank_speech.errors import UserError
from lowrank_speech.models.device import pick_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODELS, BATCHES = ("dense", "low rank"), ("one by one", "by duration")


def shape(a):
    """Preset and config; UserError for what they cannot be."""
    preset, config = speech.shape(a.preset, a.layers, "wav2vec2", "whisper")
    if preset.family == "whisper":
        speech.check_tokens(a.tokens, config)
    if (a.rank or 1) > config.hidden_size:
        raise UserError(f"--rank {a.rank}: the full rank is {config.hidden_size}; give less")
    return preset, config


def build(a, low_rank):
    """A model with random weights on the device: never dense where it is factorised, so that no memory is left over."""
    from lowrank_speech.lowrank.structure import apply_plan
    from lowrank_speech.models.build import skeleton
    from lowrank_speech.models.layers import dense_layers

    preset, config = shape(a)
    task = "seq2seq" if preset.family == "whisper" else "ctc"
    model = skeleton(task, config)
    if low_rank:
        with torch.device("meta"):
            apply_plan(model.body, dict.fromkeys(dense_layers(model, "ffn"), a.rank or config.hidden_size // 2))
    model = model.to(DTYPES[a.dtype]).to_empty(device=a.device)
    model.hf.tie_weights()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.dim() > 1:
                tensor.normal_(std=0.02)
            else:
                tensor.fill_(name.endswith("weight"))  # a norm's
    return model.eval()


def batches(a, model, kind):
    """(inputs, lengths) of every batch, on the device, and seconds of speech in all."""
    from lowrank_speech.features.batches import longest_first
    from lowrank_speech.features.kept import ListedCuts

    rng = np.random.default_rng(1)
    durations = rng.lognormal(np.log(3.6), 0.35, a.utterances).clip(1.5, 15)
    cuts = ListedCuts(SimpleNamespace(duration=float(seconds)) for seconds in durations)
    numbers = list(longest_first(cuts, a.seconds)) if kind == "by duration" else [[i] for i in range(len(cuts))]
    found = []
    for batch in numbers:
        samples = [int(16_000 * durations[i]) for i in batch]
        if model.family == "whisper":
            made = [torch.randn(n // 160, model.config.num_mel_bins) for n in samples]
        elif a.stored:
            made = [torch.randn(int(model.conv_lengths(torch.tensor(n))), model.config.conv_dim[-1]) for n in samples]
        else:
            made = [torch.randn(n) for n in samples]
        padded = torch.nn.utils.rnn.pad_sequence(made, batch_first=True)
        lengths = torch.tensor([len(x) for x in made])
        found.append((padded.to(a.device, DTYPES[a.dtype]), lengths.to(a.device)))
    return found, float(durations.sum())


@torch.inference_mode()
def recognise(a, model, given):
    """One pass."""
    from transformers import logging

    from lowrank_speech.decoding.ctc import greedy

    logging.set_verbosity_error()  # generate's remarks on its own defaults
    for features, lengths in given:
        if model.task == "ctc":
            greedy(model, features, lengths)
            continue
        options = {"max_new_tokens": a.tokens, "min_new_tokens": a.tokens, "num_beams": 1, "do_sample": False}
        out = model.hf.generate(input_features=model.pad_mel(features, lengths), return_timestamps=False, **options)
        assert out.shape[1] >= a.tokens


def memory(a):
    """Peak bytes of one pass in this process, and the bytes of the weights."""
    model = build(a, a.model == "low rank")
    given, _ = batches(a, model, a.batch)
    clock = speech.Clock(a.device)
    clock.begin()
    recognise(a, model, given)
    clock.end()
    weights = {id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    found = {"parameters M": model.parameters_total() / 1e6, "weights MB": sum(weights.values()) / 1e6}
    return found | {"MB": clock.rss / 1e6, "CUDA MB": clock.cuda and clock.cuda / 1e6}


def rows_of(a):
    """The table: a row for each model and kind of batch."""
    memories = {}
    for name in MODELS:
        for kind in BATCHES:
            memories[name, kind] = speech.own_process(__file__, {"model": name, "batch": kind}, a)
    models, rows = [build(a, name == "low rank") for name in MODELS], []
    for kind in BATCHES:
        given, spoken = batches(a, models[0], kind)
        works = [lambda model=model, given=given: recognise(a, model, given) for model in models]
        times = timing.interleaved(works, a.rounds, a.device)
        for name, seconds in zip(MODELS, times, strict=True):
            used, dense = memories[name, kind], memories["dense", kind]
            row = {"model": name, "batch": kind, "s/s": spoken / statistics.median(seconds)}
            row |= {"x speed": timing.ratio(times[0], seconds), **used}
            row |= {"x weights": used["weights MB"] / dense["weights MB"], "x MB": used["MB"] / dense["MB"]}
            row["x CUDA MB"] = used["CUDA MB"] and used["CUDA MB"] / dense["CUDA MB"]
            rows.append(row)
    return rows


def main():
    parser = timing.options(__doc__, rounds=3)
    parser.add_argument("--preset", default="xls-r-300m", help="of models/presets.py; default: xls-r-300m")
    parser.add_argument("--layers", type=timing.positive(int), help="fewer than the preset has, in encoder and decoder")
    parser.add_argument("--rank", type=timing.positive(int), help="default: half of the width")
    parser.add_argument("--utterances", type=timing.positive(int), default=12, help="default: 12")
    parser.add_argument("--seconds", type=timing.positive(float), default=20.0, help="of a batch; default: 20")
    parser.add_argument("--tokens", type=timing.positive(int), default=24, help="that Whisper writes; default: 24")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of weights and inputs; default: fp32")
    parser.add_argument("--stored", action="store_true", help="the front end's output is the input")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(memory(SimpleNamespace(**a.child))))
        return
    a.device = pick_device(a.device).type
    shape(a)
    what = f"{a.preset}{f' with {a.layers} layers' if a.layers else ''}, {a.dtype} on {a.device}"
    timing.show(f"inference, {what}, {a.utterances} utterances", rows_of(a), a.json)


if __name__ == "__main__":
    timing.run(main)
