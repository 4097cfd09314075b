"""What predicts the loss of a low-rank model? Predictions for random plans of one size, compared with measurements.

For each --reduction, plans for feed-forward layers and the embedding of a Whisper are drawn around the uniform one (the
logarithms of the ranks with a standard deviation of --spread, then scaled to the same number of parameters). Each is
put into the model, and its divergence from the dense model is measured on utterances that neither calibration nor the
predictors saw. The predictors of a plan are sums over its layers:

    measured      divergence of the model's output with only this layer at its rank, interpolated (`allocate: true`)
    energy        squared error of the layers' outputs on calibration speech (`allocate: true` until November 2026)
    relative      the same, each relative to the power of the layer's output
    two-sided     squared error, weighted by the second moments of the outputs' gradients

The table has Spearman's rank correlation of each predictor with the divergence, within each reduction and over all
plans; then the divergence of the uniform plan and of the plan that each predictor would choose.

python benchmarks/allocation.py $SPEECH_MODELS/whisper-tiny.en --speech $SPEECH_DATA/speechocean762/train
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from lowrank_speech.factorising.calibration import MOST, calibrate
from lowrank_speech.factorising.model import exact_rows
from lowrank_speech.factorising.speech import speech_of
from lowrank_speech.factorising.trial import Reference, Trial
from lowrank_speech.factorising.utterances import held_out
from lowrank_speech.lowrank.allocate import allocate_ranks, bounds, curves, predicted
from lowrank_speech.lowrank.factorise import spectra
from lowrank_speech.lowrank.layer_factors import Statistics
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.lowrank.structure import dense_size, factored_size
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.sources import open_dense

FLOOR = 0.1


def tails(spectrum, shape):
    """The curve of a layer by its discarded energy: every rank that makes it smaller."""
    energy = spectrum.double().square()
    left = [*energy.flip(0).cumsum(0).flip(0).tolist(), 0.0]
    least, most = bounds(shape, FLOOR)
    return [(rank, left[rank]) for rank in range(least, most + 1)]


def scaled(factors, uniform, shapes, budget):
    """Ranks proportional to ``factors`` times the uniform ones that cost at most ``budget``."""

    def ranks(scale):
        found = {}
        for name, rank in uniform.items():
            least, most = bounds(shapes[name], FLOOR)
            found[name] = int(min(max(rank * factors[name] * scale, least), most))
        return found

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        cost = sum(factored_size(shapes[n], r) for n, r in ranks(middle).items())
        low, high = (low, middle) if cost > budget else (middle, high)
    return ranks(low)


def spearman(a, b):
    """Rank correlation of two lists without ties."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a published Whisper")
    parser.add_argument("--speech", type=Path, required=True, help="as for lowrank-speech factorise --calibrate")
    parser.add_argument("--window", type=float, default=10, help="seconds")
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.13, 0.24, 0.4])
    parser.add_argument("--plans", type=int, default=10, help="random plans for each reduction")
    parser.add_argument("--spread", type=float, default=0.4)
    parser.add_argument("--trial", type=int, default=24, help="utterances that measure single layers")
    parser.add_argument("--test", type=int, default=24, help="further ones that measure plans")
    parser.add_argument("--json", type=Path, help="also write all numbers there")
    arguments = parser.parse_args()
    from lowrank_speech.models.window import shorten

    model, folder = open_dense(arguments.model)
    shorten(model, arguments.window)
    number = arguments.trial + arguments.test
    cuts = list(speech_of(arguments.speech, MOST + number, 1))
    layers = ("ffn", "embedding")
    with tempfile.TemporaryDirectory() as scratch:
        path, where = Path(scratch) / "m.safetensors", (model, folder, cuts, arguments.speech)
        seen = len(calibrate(*where, path, layers, None, 1, gradients=True)["utterances"])
        examples = held_out(*where, number, seen, 1)
        file = MomentsFile(path)
        statistics, chosen = Statistics.of(file), dense_layers(model, layers)
        exact = exact_rows(model, 1000, file)
        shapes = shapes_of(chosen, len(exact))
        spectrum = {init: spectra(chosen, init, statistics, exact) for init in ("activation", "two-sided")}
        first = Trial(Reference(model, examples[: arguments.trial]), chosen, "activation", statistics, exact)
        test = Trial(Reference(model, examples[arguments.trial :]), chosen, "activation", statistics, exact)
    predictors = {"measured": curves(shapes, lambda ranks: first.divergence(ranks).loss, FLOOR)}
    energy = {name: tails(values, shapes[name]) for name, values in spectrum["activation"].items()}
    power = {name: float(values.double().square().sum()) for name, values in spectrum["activation"].items()}
    predictors["energy"] = energy
    predictors["relative"] = {n: [(r, e / power[n]) for r, e in curve] for n, curve in energy.items()}
    predictors["two-sided"] = {name: tails(values, shapes[name]) for name, values in spectrum["two-sided"].items()}
    generator, rows, chosen_plans = np.random.default_rng(1), [], []
    for reduction in arguments.reductions:
        uniform = dict(plan_ranks(shapes, model.parameters_total(), reduction=reduction))
        budget = sum(factored_size(shapes[n], r) for n, r in uniform.items())
        budget += sum(dense_size(shape) for name, shape in shapes.items() if name not in uniform)
        plans = [uniform]
        for _ in range(arguments.plans):
            factors = {name: math.exp(arguments.spread * generator.standard_normal()) for name in uniform}
            plans.append(scaled(factors, uniform, shapes, sum(factored_size(shapes[n], r) for n, r in uniform.items())))
        for plan in plans:
            row = {"reduction": reduction, "loss": test.divergence(plan).loss}
            rows.append(row | {name: predicted(curve, plan) for name, curve in predictors.items()})
        for name, curve in predictors.items():
            ranks = allocate_ranks(shapes, curve, budget)
            plan = {layer: rank for layer, rank in ranks.items() if rank is not None}
            found = test.divergence(plan)
            chosen_plans.append(
                {"reduction": reduction, "by": name, **found._asdict(), "dense": len(ranks) - len(plan)}
            )
        found = test.divergence(uniform)
        chosen_plans.append({"reduction": reduction, "by": "uniform ranks", **found._asdict(), "dense": 0})
        print(f"reduction {reduction}: {len(plans)} plans", flush=True)
    print(f"\n{seen} utterances of calibration, {len(rows)} plans; Spearman's correlation with the divergence\n")
    print("| predictor |" + "".join(f" {r:.0%} |" for r in arguments.reductions) + " all |")
    print("|---|" + "---|" * (len(arguments.reductions) + 1))
    for name in predictors:
        groups = [[r for r in rows if r["reduction"] == reduction] for reduction in arguments.reductions]
        values = [spearman([r[name] for r in group], [r["loss"] for r in group]) for group in [*groups, rows]]
        print(f"| {name} |" + "".join(f" {value:.2f} |" for value in values))
    print("\n| plan by |" + "".join(f" {r:.0%}: divergence, same token |" for r in arguments.reductions))
    print("|---|" + "---|" * len(arguments.reductions))
    for name in ["uniform ranks", *predictors]:
        cells = [p for p in chosen_plans if p["by"] == name]
        print(f"| {name} |" + "".join(f" {p['loss']:.3f}, {100 * p['agreement']:.1f} % |" for p in cells))
    if arguments.json:
        arguments.json.write_text(json.dumps({"plans": rows, "chosen": chosen_plans}, indent=1))


if __name__ == "__main__":
    with torch.no_grad():
        main()
