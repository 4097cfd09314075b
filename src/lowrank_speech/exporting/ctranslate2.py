"""Export format ctranslate2: a Whisper for CTranslate2 and faster-whisper, with the factors multiplied out.

CTranslate2 has no layers for factors. The weights are stored in float32; ``compute_type="int8"`` quantises them when
faster-whisper loads them.
"""

import importlib.metadata
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.exporting import snippets

TOLERANCE = 1e-2
LEAST = (4, 5)
WINDOW = 3000  # frames of 10 ms, to which faster-whisper pads every segment


def check(model: Any, source: Path) -> None:
    """Raise UserError if the package is missing or too old, or the model is not a Whisper that it can run."""
    wanted = ".".join(map(str, LEAST))
    if model.family != "whisper" or model.task != "seq2seq":
        kind = f"a {model.family} model" if model.family != "whisper" else "a Whisper that recognises languages"
        raise UserError(
            f"{source} is {kind}, but CTranslate2 only runs a Whisper that transcribes; export it with --format onnx"
        )
    if model.window != WINDOW:
        raise UserError(
            f"{source} has a window of {model.window / 100:g} s, but faster-whisper pads all audio to 30 s; export it "
            f"with --format onnx or dense"
        )
    from lowrank_speech.models.whisper_vocabulary import open_tokenizer

    open_tokenizer(source)
    try:
        found = importlib.metadata.version("ctranslate2")
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            "export to CTranslate2 needs the package ctranslate2, which is not installed: "
            "pip install 'lowrank-speech[ctranslate2]'"
        ) from error
    if tuple(map(int, found.split(".")[:2])) < LEAST:
        raise UserError(
            f"export to CTranslate2 needs ctranslate2 of at least version {wanted}, but {found} is installed: "
            f"pip install --upgrade 'lowrank-speech[ctranslate2]'"
        )


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write the folder ``out``; returns how CTranslate2's outputs compare with those of ``model``."""
    from ctranslate2.converters import TransformersConverter

    from lowrank_speech.exporting.probes import compared, reference
    from lowrank_speech.models.files import LEGAL, is_one_of
    from lowrank_speech.models.folder import save_model
    from lowrank_speech.models.whisper_vocabulary import open_tokenizer
    from lowrank_speech.models.window import extractor

    wanted = reference(model, source)
    model.densified()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".dense-") as scratch:
        dense = Path(scratch) / "model"
        save_model(model, dense, copy_from=source)
        open_tokenizer(source).save_pretrained(dense)
        # faster-whisper reads only this file, and fetches a tokenizer from the hub if there is no tokenizer.json.
        (dense / "preprocessor_config.json").write_text(extractor(model).to_json_string(), encoding="utf-8")
        files = ["tokenizer.json", "preprocessor_config.json"]
        TransformersConverter(str(dense), copy_files=files).convert(str(out))
    for path in source.iterdir():
        if path.is_file() and is_one_of(path.name, LEGAL):
            shutil.copyfile(path, out / path.name)
    return compared(wanted, _outputs(out, model, wanted), TOLERANCE, f"the CTranslate2 export of {source}")


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with faster-whisper."""
    return snippets.faster_whisper(model, folder)


def _outputs(out: Path, model: Any, wanted: Any) -> list[Any]:
    """Log probabilities (N, V) of CTranslate2 after each of the reference's tokens."""
    import ctranslate2
    import numpy as np
    import torch

    run = ctranslate2.models.Whisper(str(out), device="cpu", compute_type="float32", intra_threads=1)
    found = []
    for features, tokens, outputs in zip(wanted.features, wanted.tokens, wanted.outputs, strict=True):
        mel = np.ascontiguousarray(model.pad_mel(features[None], torch.tensor([len(features)])).numpy())
        states, rows, ids = run.encode(ctranslate2.StorageView.from_array(mel)), [], tokens[0].tolist()
        for end in range(len(ids) - len(outputs) + 1, len(ids) + 1):
            (result,) = run.generate(
                states,
                [ids[:end]],
                beam_size=1,
                max_length=end + 1,
                suppress_blank=False,
                suppress_tokens=[],
                return_logits_vocab=True,
            )
            rows.append(torch.from_numpy(np.array(result.logits[0][0])).flatten().log_softmax(-1))
        found.append(torch.stack(rows))
    return found
