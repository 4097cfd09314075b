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
STEPS = 12  # tokens that are compared
WINDOW = 3000  # frames of 10 ms, to which faster-whisper pads every segment
POSITIONS = 448  # tokens that faster-whisper lets the decoder read


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
    if model.decoder_positions < POSITIONS:
        raise UserError(
            f"{source} has a decoder of {model.decoder_positions} positions, but faster-whisper uses {POSITIONS}; "
            f"export it with --format onnx or dense"
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
    return compared(*_outputs(out, model, wanted), TOLERANCE, f"the CTranslate2 export of {source}")


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with faster-whisper."""
    return snippets.faster_whisper(model, folder)


def _outputs(out: Path, model: Any, wanted: Any) -> tuple[Any, list[Any]]:
    """The reference for the tokens that CTranslate2 writes, and CTranslate2's own log probabilities (N, V).

    CTranslate2 does not score given tokens. So it writes greedily, once until the end of text, and once without it.
    """
    import ctranslate2
    import numpy as np
    import torch

    from lowrank_speech.exporting.probes import Reference, log_probs

    run = ctranslate2.models.Whisper(str(out), device="cpu", compute_type="float32", intra_threads=1)
    end, followed, found = model.config.eos_token_id, Reference([], [], [], []), []
    for features, tokens, outputs in zip(wanted.features, wanted.tokens, wanted.outputs, strict=True):
        prompt = tokens[0, : tokens.shape[1] - len(outputs) + 1].tolist()
        mel = np.ascontiguousarray(model.pad_mel(features[None], torch.tensor([len(features)])).numpy())
        states = run.encode(ctranslate2.StorageView.from_array(mel))
        for never in ([], [end]):
            (result,) = run.generate(
                states,
                [prompt],
                beam_size=1,
                max_length=min(len(prompt) + STEPS, model.decoder_positions),
                suppress_blank=False,
                suppress_tokens=never,
                return_logits_vocab=True,
            )
            rows = torch.stack([torch.from_numpy(np.array(row)).flatten() for row in result.logits[0]])
            written = prompt + result.sequences_ids[0]
            with torch.inference_mode():
                expected = log_probs(model, features, torch.tensor([written]))[: len(rows)]
            allowed = torch.ones(rows.shape[1], dtype=torch.bool)
            allowed[never] = False
            followed.outputs.append(expected[:, allowed].log_softmax(-1))
            found.append(rows[:, allowed].log_softmax(-1))
    return followed, found
