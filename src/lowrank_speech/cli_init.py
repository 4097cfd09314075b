"""The command ``lowrank-speech init``: a first config for a corpus, a base and a task.

lowrank-speech init mine.yaml --corpus /data/mycorpus --base facebook/wav2vec2-xls-r-300m --task asr --language en
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lowrank_speech.errors import UserError


def init(
    corpus: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="Folder with Kaldi data directories, tables or a published corpus; one data directory; or one table.",
        ),
    ],
    base: Annotated[str, typer.Option(metavar="MODEL", help="Pretrained model: hub name (owner/name) or folder.")],
    task: Annotated[
        Literal["asr", "lid"], typer.Option(help="asr: speech recognition; lid: spoken language recognition.")
    ] = "asr",
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="File to write.  [default: CORPUS_TASK.yaml]")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Folder of the results.  [default: exp/CORPUS_TASK]")
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="CODE", help="Language, such as en, if the corpus does not tell it.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="Kind of the corpus, if several fit (docs/your-data.md).")
    ] = None,
    family: Annotated[
        Literal["wav2vec2", "w2v-bert", "whisper"] | None,
        typer.Option(help="Family of the model, if its name does not tell it."),
    ] = None,
) -> None:
    """Write a commented config: the corpus' splits, the base, five ways of adapting it, and learning rates.

    The methods: the base as it is, full fine-tuning, a low-rank model with full fine-tuning, LoRA, and a low-rank model
    with LoRA.
    """
    from lowrank_speech.artefact import write_text
    from lowrank_speech.experiment import detect, first

    found = detect.corpus(corpus, language, kind)
    named = detect.family(base, family)
    _check(found, task)
    stem = f"{first.name_of(found)}_{task}"
    path, folder = config or Path(f"{stem}.yaml"), output or f"exp/{stem}"
    if path.exists():
        raise UserError(f"{path} exists; name another file, or remove it")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{path}: the name of a config ends in .yaml; name another file")
    if folder.lower().endswith((".yaml", ".yml")):
        raise UserError(f"--output is the folder of the results, not the config; write: init {folder} --output exp/...")
    made = first.text(found, base, named, task, folder)
    _refuse_invalid(made, folder)
    write_text(path, made)
    if language is not None and [one.lower() for one in found.languages] != [language.lower()]:
        one = f"; the key `languages` of the corpus in {path} picks some of them" if found.kind == "tsv" else ""
        typer.echo(
            f"--language {language} is not used: the corpus tells the language of its utterances "
            f"({', '.join(found.languages)}){one}",
            err=True,
        )
    typer.echo(
        "\n".join(
            [
                f"written: {path} ({found.kind} corpus, {found.utterances} utterances in {found.sources['train']}; "
                f"{named} model)",
                f"next: read it, then  lowrank-speech plan {path}    (what would run)",
                f"                     lowrank-speech run {path}     (run it; stop and go on at any time)",
                f"                     lowrank-speech status {path} --watch",
            ]
        )
    )


def _check(corpus: object, task: str) -> None:
    """Refuse a corpus that cannot be used for the task."""
    if task == "asr" and not corpus.transcribed:
        raise UserError(
            f"{corpus.path / corpus.sources['train']} has no transcripts, so it cannot be used for recognition; add "
            f"them (docs/your-data.md), or give --task lid"
        )
    if task == "lid" and len(corpus.languages) < 2:
        raise UserError(
            f"{corpus.path / corpus.sources['train']} has one language, {corpus.languages[0]}; language recognition "
            f"needs two or more (utt2lang, or the column language)"
        )


def _refuse_invalid(text: str, output: str) -> None:
    """Check the config, for what its options make wrong, such as the name of a folder."""
    from lowrank_speech import yaml_files
    from lowrank_speech.workflow import schema
    from lowrank_speech.workflow.experiments import read_schema

    try:
        schema.validate(yaml_files.parse(text, "the config"), read_schema())
    except ValueError as error:
        raise UserError(f"{error} (--output {output})" if str(error).startswith("output") else str(error)) from error
