"""Python code for the card of an export, which runs in the export's folder on ``audio.wav`` (16 kHz, one channel)."""

from pathlib import Path
from typing import Any

from lowrank_speech.models.files import PREPROCESSOR, is_one_of

READ = 'samples = soundfile.read("audio.wav", dtype="float32")[0]  # 16 kHz, one channel'
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "*.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a vocabulary."""
    return any(is_one_of(path.name, VOCABULARIES) for path in folder.iterdir())


def transformers(model: Any, folder: Path) -> str:
    """Code for a folder in transformers' layout."""
    first = ["import lowrank_speech.hf  # transformers reads the factors"] if model.plan else []
    task = {"ctc": "automatic-speech-recognition", "seq2seq": "automatic-speech-recognition"}.get(model.task)
    if task is not None and has_tokenizer(folder) and any((folder / name).is_file() for name in PREPROCESSOR):
        lines = [
            "import soundfile",
            "from transformers import pipeline",
            "",
            f'recognise = pipeline("{task}", model=".")',
            READ,
            'print(recognise(samples)["text"])',
        ]
    elif model.task == "classify" and model.known_head and model.family != "whisper":
        lines = [
            "import soundfile",
            "from transformers import pipeline",
            "",
            'identify = pipeline("audio-classification", model=".")',
            READ,
            "print(identify(samples))",
        ]
    elif model.task == "classify":
        # transformers has no class that computes the same
        first, lines = (
            [],
            ["from lowrank_speech import load", "", 'print(load(".").identify("audio.wav").probabilities)'],
        )
    else:
        name = model.architecture
        lines = [f"from transformers import {name}", "", f'model = {name}.from_pretrained(".")']
    return "\n".join([*first, *lines]) + "\n"


def onnx(model: Any, folder: Path) -> str:
    """Code for onnxruntime."""
    head = ["import json", "", "import numpy as np", "import onnxruntime", "import soundfile"]
    if model.task == "seq2seq":
        return "\n".join([*head, *_whisper(model, folder)]) + "\n"
    lines, imports = [READ, 'graph = onnxruntime.InferenceSession("model.onnx")'], []
    if model.family == "wav2vec2":
        given = '{"samples": samples[None], "lengths": np.array([len(samples)])}'
    else:
        imports.append("AutoFeatureExtractor")
        lines += [
            'extractor = AutoFeatureExtractor.from_pretrained(".")',
            'features = extractor(samples, sampling_rate=16000, return_tensors="np").input_features',
        ]
        count = "-(-(len(samples) + 200) // 160)" if model.family == "whisper" else "features.shape[1]"
        given = f'{{"features": features, "lengths": np.array([{count}])}}'
    if model.task == "ctc":
        lines.append(f"log_probs, frames = graph.run(None, {given})")
        if has_tokenizer(folder):
            imports.append("AutoTokenizer")
            lines.append('print(AutoTokenizer.from_pretrained(".").decode(log_probs[0].argmax(-1)))')
        else:
            lines.append("print(log_probs[0].argmax(-1))  # 0 is the blank")
    elif model.task == "classify":
        lines.append(f"(log_probs,) = graph.run(None, {given})")
        lines.append('labels = json.load(open("labels.json", encoding="utf-8"))["labels"]')
        lines.append("print(dict(zip(labels, np.exp(log_probs[0]).tolist())))")
    else:
        lines += [f"states, frames = graph.run(None, {given})", "print(states.shape)"]
    if model.task != "classify":
        head = head[2:]
    if imports:
        head.append(f"from transformers import {', '.join(imports)}")
    return "\n".join([*head, "", *lines]) + "\n"


def _whisper(model: Any, folder: Path) -> list[str]:
    said, config = model.hf.generation_config, model.config
    heads, size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    prompt, note = [config.decoder_start_token_id], ""
    if model.languages:
        language = model.languages[0]
        prompt += [said.lang_to_id[f"<|{language}|>"], said.task_to_id["transcribe"]]
        note = f"  # the second one is the language: {language}"
    prompt.append(said.no_timestamps_token_id)
    text = has_tokenizer(folder)
    shown = "processor.decode(tokens, skip_special_tokens=True)" if text else "tokens"
    reader = "WhisperProcessor" if text else "WhisperFeatureExtractor"
    return [
        f"from transformers import {reader}",
        "",
        READ,
        f'processor = {reader}.from_pretrained(".")',
        'features = processor(samples, sampling_rate=16000, return_tensors="np").input_features',
        'encoder, decoder = (onnxruntime.InferenceSession(f"{name}.onnx") for name in ("encoder", "decoder"))',
        "cross = dict(zip([o.name for o in encoder.get_outputs()], encoder.run(None, {'features': features})))",
        "names = [i.name for i in decoder.get_inputs() if i.name.startswith(('key', 'value'))]",
        f"cache = dict.fromkeys(names, np.zeros((1, {heads}, 0, {size}), np.float32))",
        'never = json.load(open("generation_config.json"))["suppress_tokens"]',
        f"tokens = step = {prompt}{note}",
        f"while tokens[-1] != {config.eos_token_id} and len(tokens) < {config.max_target_positions}:",
        "    log_probs, *new = decoder.run(None, {'tokens': np.array([step]), **cache, **cross})",
        "    log_probs[..., never] = -np.inf",
        "    cache, step = dict(zip(names, new)), [int(log_probs[0, -1].argmax())]",
        "    tokens = tokens + step",
        f"print({shown})",
    ]


def faster_whisper(model: Any, folder: Path) -> str:
    """Code for faster-whisper."""
    return "\n".join(
        [
            "from faster_whisper import WhisperModel",
            "",
            'model = WhisperModel(".", device="cpu", compute_type="int8")',
            'segments, info = model.transcribe("audio.wav", without_timestamps=True)',
            'print("".join(segment.text for segment in segments))',
            "",
        ]
    )
