"""Plots of language recognition: there if there are results, with the curves of each system."""

import numpy as np
import pytest

from lowrank_speech.reporting import language_plots, plots
from lowrank_speech.reporting.systems import Result, System, SystemName
from lowrank_speech.scoring import lid
from lowrank_speech.scoring.options import ScoreOptions


def system(base, method, noise, tests=("dev",), n=3, kind="lid"):
    name = SystemName(base, "task", method, kind)
    found = []
    for test in tests:
        rng = np.random.default_rng(1)
        truth = np.arange(60) % n
        scores = rng.normal(size=(60, n)) * noise + 3 * np.eye(n)[truth]
        ids, languages = [f"s{i}" for i in range(60)], [f"l{i}" for i in range(n)]
        labels = {one: languages[t] for one, t in zip(ids, truth, strict=True)}
        score = lid.score(ids, languages, scores, labels, ScoreOptions(bootstrap=0), 1) if kind == "lid" else {}
        found.append(Result(name, "scores", test, {}, score))
    return System(name, {"adapt": "full"}, tuple(found))


def test_without_language_recognition_there_is_no_figure():
    assert language_plots.figures([system("a", "full", 1, kind="asr")]) == {}


@pytest.mark.parametrize("noise", [1e-3, 2.0])  # without any error, and with many
def test_every_figure_is_drawn_in_both_themes(noise):
    systems = [system("a", "full", noise), system("b", "lora", noise, n=40)]
    found = language_plots.figures(systems)
    assert list(found) == ["det", "reliability", "confusion"]
    for title, caption, draw in found.values():
        assert title and caption(systems)
        assert all(plots.png(draw, systems, theme, 60).startswith(b"\x89PNG") for theme in plots.THEMES)


def test_a_panel_per_test_set_and_a_line_per_system():
    systems = [system("a", "full", 2, ("dev", "test")), system("b", "full", 3), system("a", "lora", 3)]
    figure = language_plots.det_figure(systems)
    first, second = figure.axes[:2]
    assert (first.get_title(), second.get_title()) == ("task, dev", "task, test")
    assert len(first.lines) == 3 + 1 and len(second.lines) == 1 + 1  # and the diagonal
    looks = {(line.get_color(), line.get_linestyle()) for line in first.lines[:-1]}
    assert len(looks) == 3
    plots.plt.close(figure)


def test_maps_are_bounded_and_rows_are_shares(monkeypatch):
    monkeypatch.setattr(language_plots, "MAPS", 2)
    systems = [system("a", m, 2) for m in ("full", "lora", "lowrank")]
    figure = language_plots.confusion_figure(systems)
    images = [image.get_array() for axes in figure.axes for image in axes.images]
    assert len(images) == 2 and images[0].sum(axis=1).tolist() == pytest.approx([100] * 3)
    assert "The first 2 of 3 results" in language_plots.figures(systems)["confusion"][1](systems)
    plots.plt.close(figure)
