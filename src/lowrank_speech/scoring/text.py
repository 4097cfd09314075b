"""Format results for a terminal; the first line of error rates is Kaldi's ``%WER``.

    %WER 12.34 [ 123 / 997, 10 ins, 20 del, 93 sub ] [ 95% interval 11.02 - 13.71 ]

Standard library only. The functions format the results of :func:`lowrank_speech.scoring.asr.score`,
:func:`lowrank_speech.scoring.lid.score` and of the commands ``factorise`` and ``params``.
"""

from collections.abc import Sequence
from typing import Any

MATRIX = 20
"""Languages up to which the confusion matrix is shown."""
PAIRS = 5
"""Pairs of languages to show."""
FEW = 20
"""With fewer speakers or utterances to draw from, intervals are too narrow."""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Align columns: text to the left, numbers to the right, None as "-"; no trailing blanks."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    lines = [list(header), *cells]
    return [
        "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    ]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _interval(result: dict[str, Any], key: str, scale: float = 100, digits: int = 2) -> str:
    """`` [ 95% interval low - high ]``, or an empty string if there is no interval."""
    limits = result["interval"].get(key)
    if limits is None:
        return ""
    low, high = (f"{scale * limit:.{digits}f}" for limit in limits)
    return f" [ {100 * result['confidence']:g}% interval {low} - {high} ]"


def _rate(result: dict[str, Any], name: str, key: str, total: str, prefix: str = "") -> str:
    substitutions, deletions, insertions = (
        result[prefix + kind] for kind in ("substitutions", "deletions", "insertions")
    )
    errors = substitutions + deletions + insertions
    return (
        f"%{name} {100 * result[key]:.2f} [ {errors} / {result[total]}, "
        f"{insertions} ins, {deletions} del, {substitutions} sub ]{_interval(result, key)}"
    )


def asr_lines(result: dict[str, Any], missing: int = 0) -> list[str]:
    """Error rates in Kaldi's format, then breakdowns by language and speaker; ``missing``: number of hypotheses."""
    lines = [
        _rate(result, "WER", "wer", "words"),
        _rate(result, "CER", "cer", "characters", "char_"),
        *([_rate(result, "TER", "ter", "tokens", "token_")] if result.get("ter") is not None else []),
        f"%SER {100 * result['ser']:.2f} [ {result['utterances_wrong']} / {result['utterances']} ]"
        f"{_interval(result, 'ser')}",
        f"Scored {result['utterances']} utterances, {missing} not present in hyp.",
        *_normalised(result),
        *_oracle(result.get("oracle")),
    ]
    for what in ("language", "speaker"):
        groups = result.get(f"by_{what}")
        if groups:
            header = [what, "utterances", "words", "ins", "del", "sub", "%WER", "%CER", "%WER interval"]
            lines += ["", *table(header, [_group(name, group) for name, group in groups.items()])]
    for what, groups in result.get("by_length", {}).items():
        header = [what, "utterances", "words", "ins", "del", "sub", "%WER", "%CER", "%WER interval"]
        if len(groups) > 1:
            lines += ["", *table(header, [_group(name, group) for name, group in groups.items()])]
    mean = result.get("language_mean")
    if mean:
        lines.append(f"mean over languages: %WER {100 * mean['wer']:.2f}, %CER {100 * mean['cer']:.2f}")
    return lines


def _oracle(found: dict[str, Any] | None) -> list[str]:
    """The oracle error at 1, 2, 5, 10, ... hypotheses, if there are n-best lists."""
    if not found:
        return []
    last = len(found["wer"])
    shown = [n for n in (1, 2, 5, 10, 20, 50, 100) if n < last] + [last]
    rates = ", ".join(f"{100 * found['wer'][n - 1]:.2f} (n = {n})" for n in shown)
    return [f"Oracle %WER of the n-best lists: {rates}"]


def _normalised(result: dict[str, Any]) -> list[str]:
    """The normaliser, if there is one, and the references of which it left nothing."""
    if result["normaliser"] == "none":
        return []
    numbers = ", numbers in words" if result["numbers"] == "words" else ""
    lines = [f"Text normalised by {result['normaliser']}{numbers}."]
    if emptied := result["emptied_references"]:
        shown = ", ".join(f"{one['id']} ({one['ref']!r})" for one in emptied)
        lines.append(f"References that normalise to nothing (all words of their hypotheses are insertions): {shown}")
    return lines


def _group(name: str, group: dict[str, Any]) -> list[Any]:
    counts = [group[key] for key in ("utterances", "words", "insertions", "deletions", "substitutions")]
    limits = group["interval"]["wer"]
    shown = None if limits is None else f"{100 * limits[0]:.2f} - {100 * limits[1]:.2f}"
    return [name, *counts, _percent(group["wer"]), _percent(group["cer"]), shown]


def worst_lines(worst: Sequence[dict[str, Any]]) -> list[str]:
    """The worst utterances: counts, then reference and hypothesis on two lines."""
    lines = []
    for u in worst:
        rate = "-" if u["wer"] is None else f"{100 * u['wer']:.2f}"
        errors = u["insertions"] + u["deletions"] + u["substitutions"]
        lines += [
            "",
            f"{u['id']} %WER {rate} [ {errors} / {u['words']}, {u['insertions']} ins, {u['deletions']} del, "
            f"{u['substitutions']} sub ]",
            f"  ref {u['ref']}".rstrip(),
            f"  hyp {u['hyp']}".rstrip(),
        ]
    return lines


def confusion_lines(found: dict[str, list]) -> list[str]:
    """The most frequent substitutions, deletions and insertions of words."""
    rows = [[n, "sub", ref, "->", hyp] for ref, hyp, n in found["substitutions"]]
    rows += [[n, "del", ref, "", ""] for ref, n in found["deletions"]]
    rows += [[n, "ins", "", "", hyp] for hyp, n in found["insertions"]]
    rows.sort(key=lambda row: -row[0])
    return ["", *table(["count", "error", "ref", "", "hyp"], rows)] if rows else []


def lid_lines(result: dict[str, Any]) -> list[str]:
    """Accuracies, costs, EER and Cllr with intervals and chance, then tables: languages, parts, pairs, confusions."""
    chance, bits, n = result["chance"], result["detection_cllr"], len(result["languages"])
    right = sum(result["confusion"][i][i] for i in range(n))
    threshold = {"common": "one threshold for all languages", "per-language": "one threshold per language"}
    over = {"pooled": "pooled over languages", "languages": "mean over languages"}
    lines = [
        f"%accuracy {100 * result['accuracy']:.2f} [ {right:g} / {result['segments']} ]{_interval(result, 'accuracy')}"
        f" (chance {100 * chance['accuracy']:.2f}, always the most frequent {100 * chance['majority_accuracy']:.2f})",
        f"%macro-accuracy {100 * result['macro_accuracy']:.2f}{_interval(result, 'macro_accuracy')}"
        f" (chance {100 * chance['macro_accuracy']:.2f})",
        f"C_primary actual {result['act_cprimary']:.4f}{_interval(result, 'act_cprimary', 1, 4)}"
        f" (chance {chance['act_cprimary']:.4f})",
        f"C_primary minimum {result['min_cprimary']:.4f}{_interval(result, 'min_cprimary', 1, 4)}"
        f" ({threshold[result['minimum']]})",
        f"%EER {100 * result['eer']:.2f}{_interval(result, 'eer')}"
        f" ({ {'rocch': 'ROCCH', 'nearest': 'nearest point'}[result['eer_kind']] }, {over[result['eer_over']]})",
        f"Cllr {_bits(result['cllr'])}{_interval(result, 'cllr', 1, 4)} bits (chance {chance['cllr']:.4f}); of "
        f"detection {_bits(bits['actual'])}, minimum {bits['minimum']:.4f} (chance 1)",
        f"C_avg as in LRE07 {_priors(result['lre07_cavg'])}",
        f"Scored {result['segments']} segments of {n} languages.",
    ]
    priors = list(result["act_cavg"])
    header = ["language", "segments", "%accuracy", "%EER"]
    header += [f"{kind}@{p}" for p in priors for kind in ("%miss", "%fa")]
    rows = []
    for name, one in result["by_language"].items():
        rates = [100 * one[kind][p] for p in priors for kind in ("p_miss", "p_fa")]
        rows.append([name, one["segments"], 100 * one["accuracy"], 100 * one["eer"], *rates])
    lines += ["", *table(header, rows)]
    lines += [*_parts(result, "duration"), *_parts(result, "source"), *_pairs(result["pairs"])]
    if n > MATRIX:
        return [*lines, "", f"(--json has the confusions of all {n} languages)"]
    counts = [[name, *row] for name, row in zip(result["languages"], result["confusion"], strict=True)]
    return [*lines, "", *table(["true \\ decided", *result["languages"]], counts)]


def _bits(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4f}"


def _priors(costs: dict[str, dict[str, float]]) -> str:
    """Actual and minimum cost at each prior."""
    both = zip(costs["actual"].items(), costs["minimum"].values(), strict=True)
    return "; ".join(f"at P = {p}: actual {actual:.4f}, minimum {minimum:.4f}" for (p, actual), minimum in both)


def _parts(result: dict[str, Any], what: str) -> list[str]:
    """A table of the parts of the test set by duration or source, if there are any."""
    parts = result.get(f"by_{what}")
    if not parts:
        return []
    header = [what, "segments", "languages", "%accuracy", "C_primary", "interval", "minimum", "%EER", "Cllr"]
    rows = []
    for name, part in parts.items():
        limits = part["interval"]["act_cprimary"]
        shown = None if limits is None else f"{limits[0]:.4f} - {limits[1]:.4f}"
        costs = [None if part[key] is None else f"{part[key]:.4f}" for key in ("act_cprimary", "min_cprimary")]
        rows.append(
            [
                *(name, part["segments"], part["languages"], 100 * part["accuracy"]),
                *(costs[0], shown, costs[1], _percent(part["eer"]), part["cllr"]),
            ]
        )
    return ["", *table(header, rows)]


def _pairs(pairs: dict[str, Any]) -> list[str]:
    """The pairs of languages that are hardest to tell apart."""
    rows = [[f"{a} - {b}", f"{actual:.4f}", f"{minimum:.4f}"] for a, b, actual, minimum in pairs["worst"][:PAIRS]]
    least = "" if pairs["minimum"] is None else f", minimum {pairs['minimum']:.4f}"
    mean = f"mean over {pairs['pairs']} pairs: cost actual {pairs['actual']:.4f}{least}"
    return ["", *table(["worst pairs", "actual", "minimum"], rows), mean]


def compare_lines(found: Sequence[Any]) -> list[str]:
    """A row per metric of two systems (``scoring.paired.Difference``), and what was drawn."""
    first, rows = found[0], []
    for d in found:
        scale, digits = (1, 4) if d.metric == "act_cprimary" else (100, 2)
        name = (
            "C_primary"
            if scale == 1
            else f"%{d.metric.upper() if scale == 100 and d.metric != 'accuracy' else d.metric}"
        )
        values = [f"{scale * value:.{digits}f}" for value in (d.first, d.second)]
        ends = None if d.interval is None else " - ".join(f"{scale * end:+.{digits}f}" for end in d.interval)
        verdict = {None: "not tested", False: "not told apart"}.get(d.decided, "better" if d.better else "worse")
        p = None if d.p is None else f"{d.p:.3f}"
        rows.append([name, *values, f"{scale * d.difference:+.{digits}f}", ends, p, verdict])
    level = f"{100 * first.confidence:g}% interval"
    lines = table(["metric", "first", "second", "difference", level, "p", "the first is"], rows)
    drawn = f"{first.bootstrap} resamples of {first.units} {first.unit}, {first.utterances} utterances"
    few = "; with so few, intervals are too narrow and p too small" if first.units < FEW else ""
    return [*lines, f"({drawn}{few})"]


def factorise_lines(result: dict[str, Any]) -> list[str]:
    """Parameters before and after, one row per layer (shares and errors in percent), and the layers left dense."""
    before, after = result["parameters_before"], result["parameters_after"]
    lines = [f"{before:,} -> {after:,} parameters, {0.0 - 100 * result['reduction']:+.1f} %"]
    header = ["layer", "d_out", "d_in", "rank", "%energy", "%weight error", "%output error", "before", "after"]
    rows = []
    for x in result["layers"]:
        shares = [_percent(x[key]) for key in ("energy", "weight_error", "output_error")]
        rows.append([x["name"], x["d_out"], x["d_in"], x["rank"], *shares, x["before"], x["after"]])
    lines += ["", *table(header, rows)]
    lines += [f"left dense: {name}: {why}" for name, why in result["left_dense"].items()]
    allocation, divergence = result["allocation"], result["divergence"]
    if allocation:
        plans = ", ".join(f"{plan} ranks {allocation[plan]['loss']:.4f}" for plan in ("uniform", "allocated"))
        lines += ["", f"loss above the dense model's, in nats per output: {plans}; kept: {allocation['kept']}"]
    if divergence and divergence["agreement"] is not None:
        lines += [
            "",
            f"on speech that calibration has {'also' if divergence.get('seen') else 'not'} seen: loss "
            f"{divergence['loss']:.4f} nats per output above the dense model's, same symbol in "
            f"{_percent(divergence['agreement'])} %",
        ]
    elif divergence:
        lines += ["", f"encoder states differ by {_percent(divergence['loss'])} % of their power"]
    return lines + [f"warning: {line}" for line in result["warnings"]]


def params_lines(result: dict[str, Any]) -> list[str]:
    """Parameters before and after, one row for all layers of a shape and rank, and the layers left dense."""
    before, after = result["total_before"], result["total_after"]
    lines = [f"{before:,} -> {after:,} parameters, {0.0 - 100 * result['reduction']:+.1f} %"]
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for layer in result["layers"]:
        pattern = ".".join("*" if part.isdigit() else part for part in layer["name"].split("."))
        groups.setdefault((pattern, layer["d_out"], layer["d_in"], layer["rank"]), []).append(layer)
    rows = [
        [pattern, len(layers), d_out, d_in, rank, sum(x["before"] for x in layers), sum(x["after"] for x in layers)]
        for (pattern, d_out, d_in, rank), layers in groups.items()
    ]
    lines += ["", *table(["layers", "number", "d_out", "d_in", "rank", "before", "after"], rows)]
    return lines + [f"left dense: {name}: {why}" for name, why in result.get("left_dense", {}).items()]
