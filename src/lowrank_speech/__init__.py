"""Low-rank factorisation and adaptation of pretrained speech models.

    from lowrank_speech import load

    model = load("exp/mine:wav2vec2/asr/lowrank")
    model.transcribe("a.wav").text

Stages import no code from here: ``fingerprints`` leaves this function out of their hashes.
"""


def __getattr__(name: str) -> object:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lowrank_speech.inference.loaded import load

    return load
