"""Tiny Whispers with random weights that have all special tokens and time stamps, and batches for their decoders."""

from types import SimpleNamespace

import torch

from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.sources import Source, import_model
from test_whisper_window import SPECIAL, mels, published, speech

TOKENS = (*SPECIAL[:-1], "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")
TIMES = 1501
LANG = SimpleNamespace(tokens=None, leading_space=False)


def source_in(folder, special=TOKENS, times=TIMES, **changed):
    """A source of decoders: an imported checkpoint whose hypotheses differ from utterance to utterance and end."""
    settings = {"init_std": 0.6, "max_target_positions": 48, "d_model": 32} | changed
    hub = published(folder / "hub", special_tokens=special, times=times, **settings)
    model = import_model(Source(hub, None), "whisper")
    save_model(model, folder / "model", copy_from=hub)
    return SimpleNamespace(model=ending(load_model(folder / "model")), folder=folder / "model")


def ending(model, bonus=3.0):
    """``model``, whose end of text is more likely."""

    def raised(module, inputs, logits):
        logits = logits.clone()
        logits[..., model.config.eos_token_id] += bonus
        return logits

    model.hf.proj_out.register_forward_hook(raised)
    return model


def batch_of(model, *seconds, language="de", waves=None):
    """Cuts of noise of these lengths, as a batch."""
    waves = speech(*seconds) if waves is None else waves
    features, lengths = mels(model, waves)
    names = [f"u{len(wave)}" for wave in waves]
    cuts = [SimpleNamespace(id=name, supervisions=[SimpleNamespace(language=language)]) for name in names]
    return {"cuts": cuts, "features": features, "lengths": lengths}


def rows_of(batch):
    """The utterances of a batch as batches of one, without padding."""
    for i, n in enumerate(batch["lengths"].tolist()):
        yield {"cuts": [batch["cuts"][i]], "features": batch["features"][i : i + 1, :n], "lengths": torch.tensor([n])}


def decoded(module, source, batch, lang=LANG, **keys):
    with torch.inference_mode():
        return module.open(source, lang, module.Settings(**keys))(batch)
