"""CTC back ends without k2: torch's losses, errors, the choice of the back end, messages.

The tests in with_k2/ cover k2 itself (`make test-k2`).
"""

import ast
import logging
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from lhotse.utils import fastcopy
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import CtcConfig, TrainConfig
from lowrank_speech.training.losses import ctc_losses as module
from lowrank_speech.training.losses.backends import choose_backend
from lowrank_speech.training.losses.ctc_losses import ctc_losses, import_k2
from lowrank_speech.training.losses.frame_labels import ctc_frames_needed
from test_training import built, cuts, setup_of, trainer_of  # noqa: F401 - cuts is a fixture
from tiny_training import measured, ready

CPU = torch.device("cpu")
FRAMES = torch.tensor([6, 9, 4, 7])
TARGETS = [[1, 2, 2, 3], [], [2, 2, 2], [4]]  # the third needs five frames
LABELS, SIZES = torch.tensor([label for target in TARGETS for label in target]), torch.tensor([len(t) for t in TARGETS])


def logits_of(seed=0):
    return torch.randn(4, 9, 5, generator=torch.Generator().manual_seed(seed)).requires_grad_()


# --- losses


@pytest.mark.parametrize("seed", range(5))
def test_torchs_losses_and_gradients_are_those_of_the_utterances_alone(seed):
    logits, alone = logits_of(seed), logits_of(seed).detach().double().requires_grad_()
    losses, possible = ctc_losses(logits, FRAMES, LABELS, SIZES)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (losses * weights).sum().backward()
    assert possible.tolist() == [True, True, False, True]
    for i in (0, 1, 3):
        target, n = torch.tensor(TARGETS[i], dtype=torch.long), FRAMES[i]
        expected = F.ctc_loss(alone[i, :n].log_softmax(-1), target, n, torch.tensor(len(target)), reduction="sum")
        (weights[i] * expected).backward()
        assert losses[i].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses[2] == 0 and not logits.grad[2].any()
    torch.testing.assert_close(logits.grad.double(), alone.grad, rtol=0, atol=1e-5)


def test_impossible_targets_have_no_gradient_though_their_logits_are_nan():
    logits = logits_of()
    with torch.no_grad():
        logits[2] = torch.nan
    losses, _ = ctc_losses(logits, FRAMES, LABELS, SIZES)
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(logits.grad).all() and not logits.grad[2].any()


def test_nan_among_the_logits_of_a_possible_target_shows():
    logits = logits_of()
    with torch.no_grad():
        logits[0] = torch.nan
    assert torch.isfinite(ctc_losses(logits, FRAMES, LABELS, SIZES)[0]).tolist() == [False, True, True, True]


def test_a_batch_of_impossible_targets_can_be_differentiated():
    logits = logits_of()
    losses, possible = ctc_losses(logits, torch.tensor([1, 0, 0, 0]), LABELS, SIZES)
    losses.sum().backward()
    assert not possible.any() and not losses.any() and not logits.grad.any()


def test_losses_are_float32_under_autocast():
    logits = logits_of().detach().bfloat16()
    expected, _ = ctc_losses(logits.float(), FRAMES, LABELS, SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = ctc_losses(logits, FRAMES, LABELS, SIZES)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": [1, 2, 2, 3, 2, 2, 2, 5]}, "utterance 3 of the batch has the label 5; expected 1 to 4"),
        ({"labels": [1, 2, 2, 0, 2, 2, 2, 4]}, "utterance 0 of the batch has the label 0"),
        ({"labels": [1, 2, 2, 3, -1, 2, 2, 4]}, "utterance 2 of the batch has the label -1"),
        ({"labels": [1, 2]}, r"labels have shape \(2,\), but the label counts are \[4, 0, 3, 1\]"),
        ({"sizes": [5, -1, 3, 1]}, r"counts are \[5, -1, 3, 1\]"),
        ({"sizes": [4, 4]}, "expected one each for 4 utterances"),
        ({"frames": [6, 9, 4]}, "expected one each for 4 utterances"),
        ({"frames": [6, 10, 4, 7]}, "utterance 1 of the batch has 10 frames; expected 0 to 9"),
        ({"logits": [[0.0]]}, r"logits have shape \(1, 1\); expected \(B, F, V\)"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(wrong, message):
    given = {"logits": logits_of(), "frames": FRAMES, "labels": LABELS, "sizes": SIZES}
    with pytest.raises(ValueError, match=message):
        ctc_losses(**(given | {name: torch.tensor(value) for name, value in wrong.items()}))


@pytest.mark.parametrize(
    ("ids", "frames"), [([], 0), ([3], 1), ([3, 4, 3], 3), ([3, 3], 3), ([3, 3, 3], 5), ([3, 3, 4, 4, 5], 7)]
)
def test_frames_that_ctc_needs(ids, frames):
    assert ctc_frames_needed(ids) == frames


def test_frames_that_ctc_needs_is_what_torch_finds_possible():
    generator = random.Random(5)
    for _ in range(40):
        ids = generator.choices([1, 2, 3], k=generator.randint(1, 6))
        needed = ctc_frames_needed(ids)
        for frames in (needed - 1, needed):
            if frames < 1:
                continue
            log_probs = torch.zeros(frames, 1, 4).log_softmax(-1)
            loss = F.ctc_loss(log_probs, torch.tensor([ids]), [frames], [len(ids)])
            assert bool(torch.isfinite(loss)) == (frames == needed), ids


# --- which back end


@pytest.fixture
def no_k2(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes an installed k2 out of the text of its __init__.py; None: an empty folder of that name."""

    def install(text):
        (tmp_path / "k2").mkdir()
        if text is not None:
            (tmp_path / "k2" / "__init__.py").write_text(text)
            (tmp_path / "k2-1.24.4.dist-info").mkdir()
            (tmp_path / "k2-1.24.4.dist-info" / "METADATA").write_text("Name: k2\nVersion: 1.24.4\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "k2", raising=False)

    yield install
    sys.modules.pop("k2", None)


# As k2/__init__.py says it.
OTHER_TORCH = """
import torch
raise ImportError(f"k2 was built using PyTorch 1.13.1+cu117\\nBut you are using PyTorch {torch.__version__} to run it")
"""


def test_auto_takes_torchs_without_k2_and_says_why(no_k2, caplog):
    with caplog.at_level(logging.INFO):
        chosen = choose_backend(CtcConfig(), CPU)
    assert (chosen.backend, chosen.version, chosen.k2) == ("torch", torch.__version__, None)
    (record,) = caplog.records
    assert record.levelname == "INFO" and record.message.startswith("CTC runs with torch: k2, under torch")


def test_k2_asked_for_and_absent_is_one_line_with_advice(no_k2):
    with pytest.raises(UserError, match=r"^training\.ctc\.backend: k2.* cannot be imported: .*docs/k2\.md") as caught:
        choose_backend(CtcConfig(backend="k2"), CPU)
    assert "\n" not in str(caught.value)


def test_a_k2_for_another_torch_is_one_line_that_names_both(folder, caplog):
    folder(OTHER_TORCH)
    with pytest.raises(UserError) as caught:
        choose_backend(CtcConfig(backend="k2"), CPU)
    message = str(caught.value)
    for part in ("training.ctc.backend: k2 1.24.4, under torch", torch.__version__, "built using PyTorch 1.13.1+cu117"):
        assert part in message
    assert "\n" not in message
    with caplog.at_level(logging.INFO):
        assert choose_backend(CtcConfig(), CPU).backend == "torch"
    assert "built using PyTorch 1.13.1+cu117" in caplog.text


@pytest.mark.parametrize("text", ["raise OSError('libk2.so: cannot open')", "import nothing_of_this_name"])
def test_auto_survives_whatever_keeps_k2_from_importing(text, folder):
    folder(text)
    assert choose_backend(CtcConfig(), CPU).backend == "torch"


def test_a_folder_called_k2_is_not_k2(folder, tmp_path):
    folder(None)
    with pytest.raises(ImportError, match=f"not installed.*{tmp_path.name}"):
        import_k2()


def test_a_k2_without_cuda_serves_the_cpu_alone(folder):
    folder("ctc_loss, with_cuda = None, False")
    assert choose_backend(CtcConfig(), CPU).backend == "k2"
    assert choose_backend(CtcConfig(), torch.device("cuda")).backend == "torch"
    with pytest.raises(UserError, match=r"k2 1\.24\.4.* was built without CUDA"):
        choose_backend(CtcConfig(backend="k2"), torch.device("cuda"))


def test_torch_is_taken_where_it_is_asked_for(folder):
    folder("ctc_loss = None")
    assert choose_backend(CtcConfig(backend="torch"), CPU).backend == "torch" and "k2" not in sys.modules


def test_a_beam_that_prunes_everything_is_refused():
    with pytest.raises(ValueError, match="output_beam is 0"):
        CtcConfig(output_beam=0.0)


def test_the_module_that_calls_k2_runs_under_python_39_on_torch_and_k2_alone():
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch", "k2"}


# --- in a training


def fake_k2(seen):
    """Stands in for k2, to see what reaches it: torch's CTC over its segments, in the order that k2 wants."""

    def ctc_loss(graphs, dense, output_beam, reduction, use_double_scores):
        log_probs, segments = dense
        seen.append(output_beam)
        assert segments.dtype == torch.int32 and (segments[:, 2].diff() <= 0).all()
        return torch.stack(
            [
                F.ctc_loss(
                    log_probs[i, :n], torch.tensor(target), torch.tensor(n), torch.tensor(len(target)), reduction="sum"
                )
                for (i, _, n), target in zip(segments.tolist(), graphs, strict=True)
            ]
        )

    return SimpleNamespace(
        ctc_loss=ctc_loss,
        ctc_graph=lambda targets, modified, device: targets,
        DenseFsaVec=lambda log_probs, segments: (log_probs, segments),
        with_cuda=False,
    )


@pytest.fixture
def seen(monkeypatch):
    """Installs the fake; the list of the beams it was called with."""
    beams = []
    monkeypatch.setitem(sys.modules, "k2", fake_k2(beams))
    monkeypatch.setattr("lowrank_speech.training.losses.backends.k2_version", lambda: "9.9")
    return beams


def test_a_training_with_k2_is_that_with_torch_and_says_which(cuts, tmp_path, seen):  # noqa: F811
    ends = {}
    for backend in ("auto", "torch"):
        config = TrainConfig(
            epochs=2, batch_seconds=1.5, lr=0.005, dropout=0.0, ctc=CtcConfig(backend=backend, output_beam=33.0)
        )
        trainer = trainer_of("ctc", tmp_path / backend, config)
        torch.manual_seed(1)
        ends[backend] = measured(trainer, cuts, cuts, tmp_path / backend / "metrics.jsonl"), trainer.state.history
    assert set(seen) == {33.0}
    assert ends["auto"][0]["ctc"] == {"backend": "k2", "version": "9.9"}
    assert ends["torch"][0]["ctc"] == {"backend": "torch", "version": torch.__version__}
    for mine, torchs in zip(ends["auto"][1], ends["torch"][1], strict=True):
        assert mine["loss"] == pytest.approx(torchs["loss"], rel=1e-4)


def test_a_state_of_the_other_back_end_is_refused(cuts, tmp_path, seen):  # noqa: F811
    config = TrainConfig(epochs=2, batch_seconds=60)
    trainer_of("ctc", tmp_path, config)._save()
    sys.modules["k2"] = None
    other = trainer_of("ctc", tmp_path, config)
    with pytest.raises(
        UserError, match=r"state-0-\w+\.pt belongs to a run that computed CTC with k2, but .* with torch"
    ):
        other.run(cuts, cuts, tmp_path / "metrics.jsonl")
    trainer_of("classify", tmp_path / "lid", config)._save()
    numbers = measured(trainer_of("classify", tmp_path / "lid", config), cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["ctc"] is None and numbers["ctc_impossible"] is None


def with_a_long_text(cuts):  # noqa: F811
    """The cuts, the first of which says more than fits into its frames."""

    def longer(supervision):
        return fastcopy(supervision, text="abc" * 500) if supervision.id == "u0" else supervision

    return ready(cut.map_supervisions(longer) for cut in cuts)


def test_impossible_targets_are_left_out_of_loss_and_units_and_counted(cuts):  # noqa: F811
    model, lang, loader = setup_of("ctc")
    objective = built(model, TrainConfig(), lang)
    batch, rest = loader.collate(list(with_a_long_text(cuts))), loader.collate(list(cuts)[1:])
    found = objective(model, batch["features"], batch["lengths"], batch["cuts"])
    expected = objective(model, rest["features"], rest["lengths"], rest["cuts"])
    assert (found.impossible, expected.impossible) == (1, 0)
    assert found.units == expected.units
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)


def test_a_label_outside_the_vocabulary_is_one_line_that_names_the_cuts(cuts):  # noqa: F811
    model, lang, loader = setup_of("ctc")
    model.head.linear = torch.nn.Linear(model.config.hidden_size, lang.tokens.size - 1)  # of a smaller token set
    objective = built(model, TrainConfig(), lang)
    batch = loader.collate(list(cuts)[3:5])
    with pytest.raises(UserError, match=r"has the label \d; expected 1 to \d .* this output layer; the batch: u3, u4"):
        objective(model, batch["features"], batch["lengths"], batch["cuts"])


def test_the_trainer_reports_impossible_targets(cuts, tmp_path, caplog):  # noqa: F811
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=2, batch_seconds=1.5))
    numbers = measured(trainer, with_a_long_text(cuts), cuts, tmp_path / "metrics.jsonl")
    assert [row["ctc_impossible"] for row in trainer.state.history] == [1, 1] and numbers["ctc_impossible"] == 1
    assert "epoch 2: 1 targets need more frames than their utterances have" in caplog.text
