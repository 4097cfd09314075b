"""Speed, memory and size of exported models: dense against factorised feed-forward layers, in several engines.

python benchmarks/bench_export.py                                          # XLS-R 300M at rank 512: -24 %
python benchmarks/bench_export.py --preset whisper-base --engines torch onnx onnx-int8 ctranslate2
python benchmarks/bench_export.py --preset whisper-small --utterances 6

Weights are random, shapes those of the preset, utterances noise with log-normal durations (as bench_inference.py).
wav2vec 2.0 decodes greedily with CTC; Whisper decodes exactly --tokens tokens for each utterance. All engines run on
the CPU with torch's number of threads (OMP_NUM_THREADS), each in a process of its own; onnxruntime and CTranslate2 read
what `lowrank-speech export` writes. CTranslate2 has no factors, so its low-rank model is dense.

    batch     single utterances ("one by one"), or batches of --seconds of speech ("by duration"; Whisper: its windows)
    s/s       seconds of speech per second of wall time, median over --rounds
    x speed   ratio to the dense model in torch with the same batches
    MB        peak memory of the process during a pass
    file MB   size of the weights on disk
    theory    operations of dense linear layers over those with factors, which the speed can reach

Run it on an idle machine: engines do not take turns.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

import bench_inference
import speech
import timing
from lowrank_speech.errors import UserError

ENGINES = ("torch", "compile", "onnx", "onnx-int8", "ctranslate2", "ctranslate2-int8")
MODELS, BATCHES = bench_inference.MODELS, bench_inference.BATCHES
SOT, NO_TIMESTAMPS = "<|startoftranscript|>", "<|notimestamps|>"


def write(a, name, root):
    """Write the files that the engines read for the model ``name`` to ``root``; returns the ratio of operations."""
    from lowrank_speech.exporting import onnx_files
    from lowrank_speech.exporting.onnx_graphs import part_embedding
    from lowrank_speech.lowrank.structure import low_rank_layers
    from lowrank_speech.models.folder import save_model

    torch.manual_seed(1)
    model = bench_inference.build(a, name == "low rank")
    model.plan = {layer: module.rank for layer, module in low_rank_layers(model.body).items()}
    source = root / "hf"
    if model.family == "whisper":
        _prompt(model)
    save_model(model, source)
    if {"onnx"} & set(a.engines):
        onnx_files.write_graphs(model, source, root / "onnx", a.opset)
    if {"ctranslate2", "ctranslate2-int8"} & set(a.engines):
        _ctranslate2(model, root)
    if "onnx-int8" in a.engines:
        part_embedding(model)
        onnx_files.write_graphs(model, source, root / "onnx-int8", a.opset)
        onnx_files.quantise(root / "onnx-int8")


def _prompt(model):
    """Give a random Whisper the tokens that its generation needs; its vocabulary ends with the special ones."""
    said, size = model.hf.generation_config, model.config.vocab_size
    model.config.eos_token_id = said.eos_token_id = said.pad_token_id = size - 3
    model.config.pad_token_id = model.config.bos_token_id = size - 3
    model.config.decoder_start_token_id = said.decoder_start_token_id = size - 2
    said.no_timestamps_token_id, said.is_multilingual = size - 1, False
    said.suppress_tokens = said.begin_suppress_tokens = []


def _ctranslate2(model, root):
    from ctranslate2.converters import TransformersConverter
    from transformers import WhisperTokenizer

    from lowrank_speech.models.folder import save_model

    dense, size = root / "dense", model.config.vocab_size
    save_model(_densified(model), dense)
    tokenizer = WhisperTokenizer(vocab={f"t{i}": i for i in range(size - 3)}, merges=[])
    tokenizer.add_tokens(["<|endoftext|>", SOT, NO_TIMESTAMPS], special_tokens=True)
    tokenizer.save_pretrained(dense)
    TransformersConverter(str(dense)).convert(str(root / "ctranslate2"))


def _densified(model):
    import copy

    return copy.deepcopy(model).densified()


def engine(a):
    """(recognise(features, lengths), bytes of its weights) of the engine ``a.engine``."""
    root = Path(a.folder)
    match a.engine:
        case "torch" | "compile":
            model = _loaded(root)
            if a.engine == "compile":
                for layer in _layers(model):
                    layer.compile(dynamic=True)
            run = lambda features, lengths: bench_inference.recognise(a, model, [(features, lengths)])  # noqa: E731
            return run, (root / "hf/model.safetensors").stat().st_size
        case "onnx" | "onnx-int8":
            folder = root / a.engine
            size = sum(path.stat().st_size for path in folder.glob("*.onnx*"))
            whisper = (folder / "decoder.onnx").is_file()
            return (_onnx_whisper(a, folder) if whisper else _onnx(folder)), size
        case _:
            return _run_ctranslate2(a, root), (root / "ctranslate2/model.bin").stat().st_size


def _loaded(root):
    from lowrank_speech.models.folder import load_model

    return load_model(root / "hf")


def _layers(model):
    found = list(model.body.encoder.layers)
    return found + (list(model.body.decoder.layers) if model.decodes else [])


def _session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _onnx(folder):
    graph = _session(folder / "model.onnx")

    def run(samples, lengths):
        log_probs, _ = graph.run(None, {"samples": samples.numpy(), "lengths": lengths.numpy()})
        return log_probs.argmax(-1)

    return run


def _onnx_whisper(a, folder):
    encoder, decoder = _session(folder / "encoder.onnx"), _session(folder / "decoder.onnx")
    model = bench_inference.build(SimpleNamespace(**vars(a) | {"device": "cpu"}), False).to("meta")
    config = model.config
    names = [node.name for node in decoder.get_inputs()]
    own, seen = [n for n in names if n.startswith(("key", "value"))], [n for n in names if n.startswith("cross_")]
    shape = config.decoder_attention_heads, 0, config.d_model // config.decoder_attention_heads

    def run(features, lengths):
        mel = _padded(features, config)
        cross = dict(zip(seen, encoder.run(None, {"features": mel}), strict=True))
        cache = dict.fromkeys(own, np.zeros((len(mel), *shape), np.float32))
        step = np.array([[config.vocab_size - 2, config.vocab_size - 1]] * len(mel))
        for _ in range(a.tokens):
            log_probs, *new = decoder.run(None, {"tokens": step, **cache, **cross})
            cache, step = dict(zip(own, new, strict=True)), log_probs[:, -1:].argmax(-1)

    return run


def _padded(features, config):
    """Features (B, F, C) -> (B, C, window), which has the same cost for every padding."""
    window = 2 * config.max_source_positions
    found = np.zeros((len(features), features.shape[2], window), np.float32)
    kept = features[:, :window].transpose(1, 2).numpy()
    found[:, :, : kept.shape[2]] = kept
    return found


def _run_ctranslate2(a, root):
    import ctranslate2

    kind = "int8" if a.engine.endswith("int8") else "float32"
    threads = torch.get_num_threads()
    run_in = ctranslate2.models.Whisper(
        str(root / "ctranslate2"), device="cpu", compute_type=kind, intra_threads=threads
    )
    config = _loaded(root).config
    prompt, end = [config.vocab_size - 2, config.vocab_size - 1], config.vocab_size - 3

    def run(features, lengths):
        mel = ctranslate2.StorageView.from_array(_padded(features, config))
        options = {"beam_size": 1, "suppress_tokens": [end], "max_length": len(prompt) + a.tokens}
        found = run_in.generate(mel, [prompt] * len(features), suppress_blank=False, **options)
        assert all(len(result.sequences_ids[0]) >= a.tokens - 1 for result in found)

    return run


def measure(a):
    """Rows of one engine and model, in this process."""
    shaped = _loaded(Path(a.folder))
    work = {kind: bench_inference.batches(a, shaped, kind) for kind in BATCHES}
    del shaped
    recognise, size = engine(a)
    rows = []
    for kind, (given, spoken) in work.items():

        def once(given=given):
            for features, lengths in given:
                recognise(features, lengths)

        once()  # warm up, and compile
        clock = speech.Clock("cpu")
        clock.begin()
        seconds = [timing.seconds(once) for _ in range(a.rounds)]
        clock.end()
        row = {"batch": kind, "s/s": spoken / statistics.median(seconds), "seconds": statistics.median(seconds)}
        rows.append(row | {"MB": clock.rss / 1e6, "file MB": size / 1e6})
    return rows


def theory(a):
    """Multiplications of all linear layers of the dense model over those of the low-rank one."""
    from torch import nn

    from lowrank_speech.lowrank.structure import apply_plan
    from lowrank_speech.models.build import skeleton
    from lowrank_speech.models.layers import dense_layers

    preset, config = bench_inference.shape(a)
    model = skeleton("seq2seq" if preset.family == "whisper" else "ctc", config)
    count = lambda: sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))  # noqa: E731
    dense = count()
    with torch.device("meta"):
        apply_plan(model.body, dict.fromkeys(dense_layers(model, "ffn"), a.rank or config.hidden_size // 2))
    return dense / count()


def rows_of(a):
    """The rows of the table."""
    rows, base, ratio = [], {}, theory(a)
    with tempfile.TemporaryDirectory(dir=a.scratch) as scratch:
        for name in MODELS:
            root = Path(scratch) / name.replace(" ", "-")
            root.mkdir()
            write(a, name, root)
            for kind in a.engines:
                what = {"engine": kind, "folder": str(root), "child": None, "scratch": None, "json": None}
                for row in speech.own_process(__file__, what, a):
                    seconds = row.pop("seconds")
                    base.setdefault(row["batch"], seconds)
                    first = {"engine": kind, "model": name, "batch": row.pop("batch"), "s/s": row.pop("s/s")}
                    first["x speed"] = base[first["batch"]] / seconds
                    rows.append(first | row | {"theory": ratio if name == "low rank" else 1.0})
    return rows


def main():
    parser = timing.options(__doc__, rounds=3)
    parser.add_argument("--device", default="cpu", choices=["cpu"], help="the exports are for CPUs; default: cpu")
    parser.add_argument("--preset", default="xls-r-300m", help="a preset of models/presets.py; default: xls-r-300m")
    parser.add_argument("--layers", type=timing.positive(int), help="use fewer layers, in encoder and decoder")
    parser.add_argument("--rank", type=timing.positive(int), help="default: half of the model's width")
    parser.add_argument("--utterances", type=timing.positive(int), default=12, help="default: 12")
    parser.add_argument("--seconds", type=timing.positive(float), default=20.0, help="per batch; default: 20")
    parser.add_argument("--tokens", type=timing.positive(int), default=24, help="Whisper's, per utterance; default: 24")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="default: all that the family has")
    parser.add_argument("--opset", type=timing.positive(int), default=18, help="of the ONNX graphs; default: 18")
    parser.add_argument("--scratch", type=timing.folder, help="folder for the exports; default: the temporary one")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(measure(SimpleNamespace(**a.child))))
        return
    a.dtype, a.stored = "fp32", False
    preset, _ = bench_inference.shape(a)
    whisper = preset.family == "whisper"
    a.engines = a.engines or [name for name in ENGINES if whisper or not name.startswith("ctranslate2")]
    if not whisper and (wrong := [name for name in a.engines if name.startswith("ctranslate2")]):
        raise UserError(f"--engines {wrong[0]}: CTranslate2 only runs Whisper; choose another --preset")
    if a.engines[0] != "torch":
        a.engines = ["torch", *(name for name in a.engines if name != "torch")]  # the ratios are relative to it
    what = f"{a.preset}{f' with {a.layers} layers' if a.layers else ''}, {a.utterances} utterances"
    timing.show(f"exports, {what}", rows_of(a), a.json)


if __name__ == "__main__":
    timing.run(main)
