"""The command ``lowrank-speech transcribe``: recordings -> text, with a trained or published model.

    lowrank-speech transcribe exp/mine:wav2vec2/asr/lowrank a.wav
    lowrank-speech transcribe openai/whisper-base talks/ --format srt --output subtitles

The libraries are imported when it runs, so that ``--help`` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lowrank_speech.errors import UserError

EXAMPLE = """a mapping such as '{"beam": 20}'"""

Audio = Annotated[
    list[str],
    typer.Argument(
        help="Audio or video files, folders (searched for audio, with those in them), patterns such as 'calls/*.mp3', "
        "or - for standard input.",
        metavar="AUDIO",
        show_default=False,
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        help="A system of an experiment (exp/mine:base/task/method), a model folder, or a hub name.",
        metavar="MODEL",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        help="Write a file for each recording into this folder, instead of standard output.", metavar="FOLDER"
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto: CUDA if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="Number format: fp32, or bf16 (half the memory, faster on a GPU).", metavar="fp32|bf16")
]
BatchSeconds = Annotated[
    float,
    typer.Option(help="Seconds of speech of short recordings that are decoded together.", min=0.1, metavar="SECONDS"),
]
Revision = Annotated[
    str | None, typer.Option(help="Commit, tag or branch of a hub name.", metavar="NAME", show_default=False)
]


def transcribe(
    model: ModelName,
    audio: Audio,
    language: Annotated[
        str | None,
        typer.Option(help="Language of all recordings, such as de.  [default: Whisper detects it]", metavar="CODE"),
    ] = None,
    task: Annotated[
        Literal["transcribe", "translate"],
        typer.Option(help="Whisper: write what is said, or translate it into English."),
    ] = "transcribe",
    decoder: Annotated[
        str, typer.Option(help="Kind of decoder: greedy, beam, hlg ... (docs/decoding.md).", metavar="KIND")
    ] = "greedy",
    decoder_options: Annotated[
        str | None, typer.Option(help="Keys of the decoder, such as '{\"beam\": 20}'.", metavar="JSON")
    ] = None,
    lm: Annotated[
        Path | None,
        typer.Option(
            help="Language model for the decoder: folder of the stage lm, or an n-gram of words (ARPA, KenLM).",
            metavar="PATH",
        ),
    ] = None,
    graph: Annotated[
        Path | None, typer.Option(help="Graph for hlg, nbest, rescore: folder of the stage graph.", metavar="FOLDER")
    ] = None,
    rescore_lm: Annotated[
        Path | None, typer.Option(help="Larger n-gram for nbest and rescore, as --lm.", metavar="PATH")
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="Whisper: find the times of words (CTC models always give them).")
    ] = False,
    form: Annotated[
        Literal["text", "json", "srt", "vtt", "ctm"], typer.Option("--format", help="Format of the results.")
    ] = "text",
    output: Output = None,
    device: Device = "auto",
    dtype: Dtype = "fp32",
    batch_seconds: BatchSeconds = 60.0,
    revision: Revision = None,
) -> None:
    """Transcribe recordings of any length with a trained or published model.

    Reads what libsndfile or FFmpeg can read, resamples it, and averages its channels. Long recordings are read in
    pieces: Whisper decodes window after window, CTC models decode overlapping chunks.

    text: the text alone for one file, else NAME<tab>TEXT a line. json: an object a line with audio, text, language,
    seconds and words (a list with word, start, end, score; null if there are no times); if a recording has no result,
    text is null and error says why. Lines come as recordings are finished, not in the order of the arguments.

    Exit code 1: some recordings have no result; standard error names them. 2: wrong arguments.
    """
    from lowrank_speech.inference import session

    try:
        named = session.prepare(audio, output)
        if form in ("srt", "vtt") and output is None and len(named) > 1:
            raise UserError(
                f"--format {form}: subtitles of {len(named)} recordings need a file each; give --output FOLDER"
            )
        options = _options(decoder_options)
        from lowrank_speech.inference.decoders import Request
        from lowrank_speech.inference.formats import SUFFIXES, TIMED, ctm_names
        from lowrank_speech.inference.loaded import load

        names = ctm_names([one.name for one in named]) if form == "ctm" else {}
        asked = Request(
            language, task, decoder, options, lm, graph, rescore_lm, words or form in TIMED, batch_seconds
        )  # fmt: skip
        recogniser = load(model, device, dtype, revision).recogniser(asked)
        written = _writer(form, names, session.names_shown(named, audio, output))
        code = session.process(named, recogniser, batch_seconds, written, output, SUFFIXES[form])
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        code = session.INTERRUPTED
    raise typer.Exit(code)


def _options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"--decoder-options is not valid JSON ({error}); give a mapping such as '{{\"beam\": 20}}'"
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"--decoder-options is {text}; give a mapping such as '{{\"beam\": 20}}'")
    if "kind" in found:
        raise UserError("--decoder-options: give the kind as --decoder")
    return found


def _writer(form: str, names: dict[str, str], named: bool) -> Any:
    from lowrank_speech.inference import formats

    def written(one: Any, result: Any) -> str:
        if not isinstance(result, UserError):
            return formats.written(result, names.get(one.name, one.name), form, named)
        return formats.line(formats.transcript_json(one.name, result)) + "\n" if form == "json" else ""

    return written
