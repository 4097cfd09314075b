"""The command ``lowrank-speech identify``: recordings -> languages with probabilities.

    lowrank-speech identify exp/mine:whisper/lid/full a.wav
    lowrank-speech identify openai/whisper-base talks/ --languages de,en,fr --format json

The libraries are imported when it runs, so that ``--help`` answers at once.
"""

from typing import Annotated, Any, Literal

import typer

from lowrank_speech.cli_transcribe import Audio, BatchSeconds, Device, Dtype, ModelName, Output, Revision
from lowrank_speech.errors import UserError

SUFFIXES = {"text": ".txt", "json": ".json"}


def identify(
    model: ModelName,
    audio: Audio,
    languages: Annotated[
        str | None,
        typer.Option(
            help="Choose between these languages, such as de,en,fr.  [default: all that the model knows]",
            metavar="CODES",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="backend.json that calibrates the scores; none: do not calibrate.  [default: that of the system]",
            metavar="FILE",
        ),
    ] = None,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="Format of the results.")] = "text",
    output: Output = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    batch_seconds: BatchSeconds = 60.0,
    revision: Revision = None,
) -> None:
    """Recognise the language of recordings of any length.

    MODEL is a trained language recogniser, or a multilingual Whisper, which uses its language tokens. Probabilities are
    for equally frequent languages. Without a trained back end they are not calibrated, and standard error says so.

    text: LANGUAGE<tab>PROBABILITY for one file, else NAME<tab>LANGUAGE<tab>PROBABILITY a line. json: an object a line
    with audio, language and probabilities (language -> probability); if a recording has no result, language is null and
    error says why. Lines come as recordings are finished, not in the order of the arguments.

    Exit code 1: some recordings have no result; standard error names them. 2: wrong arguments.
    """
    from lowrank_speech.inference import session

    try:
        named = session.prepare(audio, output)
        asked = None if languages is None else [code.strip() for code in languages.split(",") if code.strip()]
        from lowrank_speech.inference.loaded import load

        identifier = load(model, device, dtype, revision).identifier(asked, backend)
        if not identifier.calibrated:
            typer.echo("the probabilities are not calibrated: the system has no trained back end", err=True)
        written = _writer(form, session.names_shown(named, audio, output))
        code = session.process(named, identifier, batch_seconds, written, output, SUFFIXES[form])
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        code = session.INTERRUPTED
    raise typer.Exit(code)


def _writer(form: str, named: bool) -> Any:
    from lowrank_speech.inference import formats

    def written(one: Any, result: Any) -> str:
        if form == "json":
            return formats.line(formats.identification_json(one.name, result)) + "\n"
        if isinstance(result, UserError):
            return ""
        shown = f"{result.language}\t{result.probabilities[result.language]:.4f}\n"
        return f"{one.name}\t{shown}" if named else shown

    return written
