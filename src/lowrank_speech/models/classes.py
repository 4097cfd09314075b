"""Which of transformers' classes stands for which model type and task, and how its parts are called.

    model_type       family     classes of the tasks ctc, classify, body
    wav2vec2         wav2vec2   Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification, Wav2Vec2Model (also XLS-R and MMS)
    hubert           wav2vec2   Hubert...
    wavlm            wav2vec2   WavLM...
    data2vec-audio   wav2vec2   Data2VecAudio...
    wav2vec2-bert    w2v-bert   Wav2Vec2Bert...
    whisper          whisper    seq2seq: WhisperForConditionalGeneration, classify: WhisperForAudioClassification

A family is what a model eats and how it is adapted; ``model_type`` is transformers' own word, from ``config.json``.
``body`` is a pretrained encoder without a head.
"""

from lowrank_speech.errors import UserError

FAMILY_OF = {
    "wav2vec2": "wav2vec2",
    "hubert": "wav2vec2",
    "wavlm": "wav2vec2",
    "data2vec-audio": "wav2vec2",
    "wav2vec2-bert": "w2v-bert",
    "whisper": "whisper",
}
_ENCODERS = {  # model_type -> stem of the class names, name of the body inside a class with a head
    "wav2vec2": ("Wav2Vec2", "wav2vec2"),
    "hubert": ("Hubert", "hubert"),
    "wavlm": ("WavLM", "wavlm"),
    "data2vec-audio": ("Data2VecAudio", "data2vec_audio"),
    "wav2vec2-bert": ("Wav2Vec2Bert", "wav2vec2_bert"),
}
_ENDINGS = {"ctc": "ForCTC", "classify": "ForSequenceClassification", "body": "Model"}

HF_CLASS = {(kind, task): stem + end for kind, (stem, _) in _ENCODERS.items() for task, end in _ENDINGS.items()} | {
    ("whisper", "seq2seq"): "WhisperForConditionalGeneration",
    ("whisper", "classify"): "WhisperForAudioClassification",
}
# Where the pretrained body stands inside each class; heads are all that stands outside it.
BODY_PREFIX = {
    HF_CLASS[kind, task]: "" if task == "body" else f"{body}."
    for kind, (_, body) in _ENCODERS.items()
    for task in _ENDINGS
} | {"WhisperForConditionalGeneration": "model.", "WhisperForAudioClassification": ""}

_HEADS_OF = {"ctc": ("lm_head",), "classify": ("projector", "classifier"), "body": (), "seq2seq": ()}
HEADS = {name: _HEADS_OF[task] for (_, task), name in HF_CLASS.items()}


def family_of(model_type: str, where: str) -> str:
    """The family of transformers' ``model_type``; UserError that lists the known ones."""
    try:
        return FAMILY_OF[model_type]
    except KeyError:
        raise UserError(f"{where}: model_type {model_type!r} is none of {', '.join(sorted(FAMILY_OF))}") from None


def class_name(model_type: str, task: str) -> str:
    """Name of transformers' class; UserError where model type and task don't go together."""
    try:
        return HF_CLASS[model_type, task]
    except KeyError:
        tasks = sorted(t for kind, t in HF_CLASS if kind == model_type)
        raise UserError(f"a {model_type} model has no task {task!r}; it has: {', '.join(tasks) or 'none'}") from None


def hf_class(model_type: str, task: str) -> type:
    """Transformers' class for a model type and a task."""
    import transformers

    return getattr(transformers, class_name(model_type, task))


def task_of(model_type: str, architecture: str) -> str:
    """The task of a class that a published config names; a pretraining class gives what adaptation takes from it."""
    tasks = {name: task for (kind, task), name in HF_CLASS.items() if kind == model_type}
    return tasks.get(architecture, "seq2seq" if model_type == "whisper" else "body")
