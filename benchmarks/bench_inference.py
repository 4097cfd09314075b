"""Speed and memory of recognition: a dense model against the same model with factorised feed-forward layers.

python benchmarks/bench_inference.py                                             # XLS-R 300M at rank 512: -24 %
python benchmarks/bench_inference.py --preset whisper-small --utterances 6       # rank 384 in encoder and decoder
python benchmarks/bench_inference.py --dtype bf16 --utterances 400 --seconds 80  # on CUDA if available

The weights are random, the shapes those of the preset. The input is noise with log-normal durations (median 3.6 s,
sigma 0.35, similar to speechocean762). wav2vec 2.0 and related models decode with greedy CTC. Whisper gets its full
window for every utterance and decodes exactly --tokens tokens, because with random weights it never ends by itself.
Features are computed beforehand; --stored also leaves out the convolutional front end, as with `features: conv`.

    batch        single utterances ("one by one"), or batches of --seconds of speech, padding included ("by duration")
    s/s          seconds of speech per second of wall time
    weights MB   exact size of all parameters and buffers
    MB           peak memory of the process during a pass (VmHWM, reset before it); each row has its own process
    CUDA MB      max_memory_allocated of that process
    x ...        ratio to the row of the dense model

For the speed, both models run in one process and take turns; x speed is the median over --rounds of the ratios within
a round.
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
    """Preset and config. Raises UserError if the options do not fit the preset."""
    preset, config = speech.shape(a.preset, a.layers, "wav2vec2", "whisper")
    if preset.family == "whisper":
        speech.check_tokens(a.tokens, config)
    if (a.rank or 1) > config.hidden_size:
        raise UserError(f"--rank {a.rank}: the full rank is only {config.hidden_size}")
    return preset, config


def build(a, low_rank):
    """A model with random weights on the device; layers to factorise are never dense there, which would cost memory."""
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
                tensor.fill_(name.endswith("weight"))  # of a norm
    return model.eval()


def batches(a, model, kind):
    """(inputs, lengths) of every batch, on the device, and the total seconds of speech."""
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
    """One pass over the utterances."""
    from transformers import logging

    from lowrank_speech.decoding.ctc.greedy import best_paths

    logging.set_verbosity_error()  # generate warns about its own defaults
    for features, lengths in given:
        if model.task == "ctc":
            best_paths(model, features, lengths)
            continue
        options = {"max_new_tokens": a.tokens, "min_new_tokens": a.tokens, "num_beams": 1, "do_sample": False}
        out = model.hf.generate(input_features=model.pad_mel(features, lengths), return_timestamps=False, **options)
        assert out.shape[1] >= a.tokens


def memory(a):
    """Peak memory of one pass in this process, and the size of the weights."""
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
    """The rows of the table: one for each model and kind of batch."""
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
    parser.add_argument("--preset", default="xls-r-300m", help="a preset of models/presets.py; default: xls-r-300m")
    parser.add_argument("--layers", type=timing.positive(int), help="use fewer layers, in encoder and decoder")
    parser.add_argument("--rank", type=timing.positive(int), help="default: half of the model's width")
    parser.add_argument("--utterances", type=timing.positive(int), default=12, help="default: 12")
    parser.add_argument("--seconds", type=timing.positive(float), default=20.0, help="per batch; default: 20")
    parser.add_argument("--tokens", type=timing.positive(int), default=24, help="Whisper's, per utterance; default: 24")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of weights and inputs; default: fp32")
    parser.add_argument("--stored", action="store_true", help="use the output of the front end as input")
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
