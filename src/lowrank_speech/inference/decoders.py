"""From what a person asks for to a recogniser: kind of decoder and its keys, language models, graphs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from lowrank_speech.decoding import registry, resources
from lowrank_speech.errors import UserError
from lowrank_speech.inference.network import Network
from lowrank_speech.lang.graphs.load import Graph
from lowrank_speech.lang.graphs.settings import WITH_LM
from lowrank_speech.lang.lm.load import LanguageModel
from lowrank_speech.settings import read


@dataclass(frozen=True)
class Request:
    """How to transcribe.

    language   of the recordings, a code; None: Whisper detects it
    task       transcribe, or translate (Whisper: into English)
    decoder    kind of decoder (``decoding.registry``), and ``options``, its keys
    lm         folder of the stage lm, or an n-gram of words as ARPA or KenLM file
    graph      folder of the stage graph; ``rescore_lm`` as ``lm``
    words      whether Whisper finds the times of words (CTC always does)
    batch_seconds   seconds of speech that are decoded at once
    """

    language: str | None = None
    task: str = "transcribe"
    decoder: str = "greedy"
    options: Mapping[str, Any] = field(default_factory=dict)
    lm: str | Path | None = None
    graph: str | Path | None = None
    rescore_lm: str | Path | None = None
    words: bool = False
    batch_seconds: float = 60.0


def recogniser(network: Network, request: Request) -> Any:
    """What transcribes with ``network``. UserError: the model is for something else, or cannot do what is asked for."""
    name = network.found.name
    if network.task == "classify":
        raise UserError(f"{name} is a model for language recognition; use `lowrank-speech identify`")
    if network.task == "body":
        raise UserError(
            f"{name} is a pretrained encoder without an output layer for text; train it for recognition first, or give "
            f"a trained system"
        )
    module = registry.module(request.decoder, network.task)
    given = _given(request, module.Settings)
    keys = {"batch_seconds": request.batch_seconds, **request.options, "kind": request.decoder}
    keys |= {name: str(path) for name, path in given.items() if name != "graph"}
    if "graph" in given:
        keys |= _graph_keys(Graph.load(given["graph"]))
    if network.task == "seq2seq":
        keys |= _whisper(network, request, keys)
    elif request.task != "transcribe":
        raise UserError(f"{name} is a CTC model, which writes what is said; only Whisper translates")
    settings = read(module.Settings, keys, "decoder")
    network.resources = _loaded(network, settings, given)
    if network.task == "seq2seq":
        from lowrank_speech.inference.whisper import WhisperRecogniser

        return WhisperRecogniser(network, settings, request.language, request.options)
    from lowrank_speech.inference.ctc import CtcRecogniser

    return CtcRecogniser(network, settings, request.language)


def _whisper(network: Network, request: Request, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a decoder of Whisper that follow from the request and the model."""
    from lowrank_speech.decoding.whisper.codes import Codes
    from lowrank_speech.models.text import decoder_tokens

    tokens = decoder_tokens(network.model, network.folder, network.lang)
    codes = Codes.of(network.model, tokens, network.folder, network.lang.tokens is None)
    if request.task != "transcribe" and request.task not in codes.tasks:
        raise UserError(f"{network.found.name} is a Whisper that does not translate; use a multilingual one")
    # Fine-tuning here teaches text without time stamps, so a trained model may have unlearned them.
    long = "chunks" if network.found.trained or not codes.times else "sequential"
    return {
        "task": request.task,
        "long": keys.get("long") or long,
        "word_times": request.words or bool(keys.get("word_times")),
    }


def _given(request: Request, settings: type) -> dict[str, Path]:
    """The language models and graphs of a request. UserError: the decoder does not read one, or lacks its graph."""
    reads = [name for name in resources.read_by(settings) if name == "graph" or name in known_keys(settings)]
    found = {}
    for name in resources.NAMES:
        option, path = f"--{name.replace('_', '-')}", getattr(request, name)
        if path is None and name == "graph" and name in reads:
            raise UserError(
                f"the decoder {request.decoder} searches a graph; give the folder of the stage graph as --graph"
            )
        if path is None:
            continue
        path = Path(path)
        if name not in reads:
            raise UserError(f"the decoder {request.decoder} reads no {name}, but {option} is {path}; remove it")
        if not path.exists():
            raise UserError(f"{option}: {path} does not exist; check the path")
        found[name] = path
    return found


def _graph_keys(graph: Graph) -> dict[str, Any]:
    """The keys of a decoder that describe its graph, whose n-gram and lexicon are in its folder."""
    return {"graph": graph.kind, "lm": str(graph.folder) if graph.kind in WITH_LM else None, "lexicon": None}


def known_keys(settings: type) -> set[str]:
    """The keys of a settings class."""
    return {field.name for field in fields(settings)}


def _loaded(network: Network, settings: Any, given: Mapping[str, Path]) -> dict[str, Any]:
    """Load the language models and graphs that a decoder reads."""
    for name in ("lm", "rescore_lm"):
        if name in resources.read_by(type(settings)) and getattr(settings, name, None) and name not in given:
            raise UserError(
                f"the decoder {settings.kind} reads a language model; give it as --{name.replace('_', '-')}"
            )
    found: dict[str, Any] = {}
    for name, path in given.items():
        if name == "graph":
            found[name] = Graph.load(path)
        else:
            found[name] = LanguageModel.load(path) if path.is_dir() else _words(path, network.lang)
    return found


def _words(path: Path, lang: Any) -> LanguageModel:
    """An n-gram of words that another program made, as the stage lm would take it."""
    from lowrank_speech.artefact import sha256
    from lowrank_speech.lang.lm import arpa, kenlm_file
    from lowrank_speech.lang.lm.ngrams import SPECIAL
    from lowrank_speech.lang.lm.query import NEEDS_KENLM, has_kenlm
    from lowrank_speech.lang.lm.units import check_words

    binary = kenlm_file.is_binary(path)
    if binary and not has_kenlm():
        raise UserError(NEEDS_KENLM.format(path=path))
    found = kenlm_file.describe(path) if binary else arpa.read(path)
    words = tuple(sorted(set(found.words) - set(SPECIAL)))
    check_words(words, "word", lang, str(path))
    files = (None, path) if binary else (path, None)
    return LanguageModel(path.parent, "word", found.order, *files, words, sha256(path), None)
