"""The external files that an experiment uses: tables of corpora, recordings of noise, local model folders."""

import functools
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_speech import published
from lowrank_speech.corpora import registry as corpora
from lowrank_speech.corpora import tracking
from lowrank_speech.errors import UserError
from lowrank_speech.models.files import imported_files
from lowrank_speech.settings import read
from lowrank_speech.training.config import Noise


def lost_corpora(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> why the data of a corpus cannot be found, for the corpora ``names`` in ``config`` (resolved)."""
    found = {}
    for name in names:
        try:
            located(config["corpora"][name], f"corpora.{name}")
        except UserError as error:
            found[name] = f"corpora.{name}: {error}"
    return found


def corpus_sources(section: Mapping[str, Any]) -> dict[str, str] | None:
    """Name -> path of the tables that a corpus (resolved) is made from; None: it cannot be found here."""
    try:
        config, root = located(section, "corpora")
        sources = corpora.module(section["kind"]).sources(config, root)
    except UserError:
        return None
    return {name: str(path) for name, path in tracking.tables(sources, root).items()}


def located(section: Mapping[str, Any], where: str) -> tuple[Any, Path | None]:
    """The settings of a corpus and its folder. UserError: the folder does not match the settings."""
    corpus, data_root = corpora.module(section["kind"]), os.environ.get("SPEECH_DATA")
    config = read(corpus.Config, section, where)
    return config, corpus.locate(config, Path(data_root) if data_root else None)


def lost_bases(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Key of the config -> why it names no folder below $SPEECH_MODELS, for the ``source`` of the bases ``names``."""
    sources = {name: config["bases"][name]["source"] for name in names}
    return {
        f"bases.{name}.source": f"bases.{name}.source: {published.missing(source)}"
        for name, source in sources.items()
        if source != "scratch" and published.is_name(source) and not published.local(source).is_dir()
    }


def blocked_output(folder: str, writing: bool) -> str | None:
    """Why the folder of the outputs cannot be made or, if ``writing``, not be written; None if it can."""
    above = Path(folder).absolute()
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        return f"output: {folder} cannot be a folder, because {above} is a file; name another folder"
    if writing and not os.access(above, os.W_OK | os.X_OK):
        return f"output: {folder} cannot be written, because {above} is read-only for you; name another folder"
    return None


def noise_sources(recipe: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Name -> path of the noise recordings of a recipe (resolved); None: no folder is set, or it does not exist."""
    folder = _noise_folder(recipe)
    return None if folder is None else _recordings(folder)


def _noise_folder(recipe: Mapping[str, Any] | None) -> str | None:
    return ((recipe or {}).get("noise") or {}).get("folder")


@functools.cache
def _recordings(folder: str) -> dict[str, str] | None:
    """The recordings in ``folder``, which many systems may share."""
    if not Path(folder).is_dir():
        return None
    return {name: str(path) for name, path in Noise(folder=folder).recordings().items()}


def lost_noise(recipes: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Why the noise of a recipe in ``recipes`` (whose -> recipe) cannot be found; None: all of it was found."""
    for whose, recipe in recipes.items():
        folder = _noise_folder(recipe)
        if folder is not None and not _recordings(folder):
            reason = "has no recordings (*.wav, *.flac, *.ogg)" if Path(folder).is_dir() else "does not exist"
            return f"training.noise.folder: {folder} {reason}; correct the path ({whose})"
    return None


def lm_sources(section: Mapping[str, Any]) -> dict[str, str] | None:
    """Name -> path of the text files and the model that a language model is made from; None: one does not exist."""
    found = {f"text/{number}": path for number, path in enumerate(section["text"])}
    if section["arpa"] is not None:
        found["arpa"] = section["arpa"]
    return found if all(Path(path).is_file() for path in found.values()) else None


def lexicon_sources(path: str | None) -> dict[str, str] | None:
    """Name -> path of the pronunciation dictionary of a graph; None: it does not exist."""
    if path is None:
        return {}
    return {"lexicon": path} if Path(path).is_file() else None


def lost_lexicon(graphs: Iterable[Mapping[str, Any]]) -> str | None:
    """Why a pronunciation dictionary of ``graphs`` cannot be found; None: all exist."""
    for graph in graphs:
        if lexicon_sources(graph["lexicon"]) is None:
            return f"decoders: the lexicon {graph['lexicon']} does not exist; correct the path"
    return None


def lost_lms(sections: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Why a text file or a model of ``sections`` (name -> section of `lms`) cannot be used; None: all seem fine.

    Models are only looked at, at their start and end; the stage lm reads all of them.
    """
    for name, section in sections.items():
        lost = next((path for path in section["text"] if not Path(path).is_file()), None)
        if lost is not None:
            return f"lms.{name}.text: {lost} does not exist; correct the path"
        if section["arpa"] is None:
            continue
        if not Path(section["arpa"]).is_file():
            return f"lms.{name}.arpa: {section['arpa']} does not exist; correct the path"
        from lowrank_speech.lang.lm import taken  # imports NumPy

        try:
            order = taken.order(Path(section["arpa"]))
        except UserError as error:
            return f"lms.{name}.arpa: {error}"
        if section["order"] not in (None, order):
            return (
                f"lms.{name}.order is {section['order']}, but the model {section['arpa']} has order {order}; correct "
                f"order, or remove it"
            )
    return None


def base_sources(source: str) -> dict[str, str] | None:
    """Name -> path of the files of a local model folder; None: ``source`` is not a folder."""
    folder = published.local(source)
    if not folder.is_dir():
        return None
    return {path.name: str(path) for path in imported_files(folder)}
