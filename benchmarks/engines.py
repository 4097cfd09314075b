"""The two training engines that bench_trainer.py compares, their model and data, and the batches of a pass."""

import time
from types import SimpleNamespace

import numpy as np
import torch

import speech
from lowrank_speech.errors import UserError

SHAPES = {
    "small": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
    "tiny-whisper": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 64, "pad_token_id": 40}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    | {"bos_token_id": 40, "eos_token_id": 40, "decoder_start_token_id": 41},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
NORMS = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
LORA_TARGETS = ["q_proj", "v_proj", "intermediate_dense", "output_dense"]
WHISPER_TARGETS = ["q_proj", "v_proj", "fc1", "fc2"]
LR, DECAY, BETAS, WARM = 1e-4, 0.01, (0.9, 0.98), 2


# -- data and model ----------------------------------------------------------------------------------------------------


def lang():
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
    from lowrank_speech.lang.tokens import CharTokens

    tokens = CharTokens.build("abcdefghijklmnopqrstuvwxyz' ")
    return Lang("char", tokens, ("en",), Normaliser(NormaliseConfig()), "0" * 64)


class Letters:
    """Stands in for Whisper's tokenizer; the weights are random, so any tokens will do."""

    eot, size, language_ids = 40, 64, {"en": 42}

    def prompt(self, language):
        return [41, 42, 43, 44]

    def encode(self, text):
        return [1 + i for i in lang().tokens.encode(text)]


def is_whisper(preset):
    return "whisper" in preset


def shape_of(preset):
    """The config keys of a preset. Raises UserError if the engines cannot train it or it does not exist."""
    from lowrank_speech.models.presets import PRESETS

    known = SHAPES | {name: p.config for name, p in PRESETS.items() if p.model_type in ("wav2vec2", "whisper")}
    if preset not in known:
        raise UserError(f"--preset {preset}: expected one of: {', '.join(known)}")
    return dict(known[preset])


def speech_model(preset):
    """Build the model of a preset; each call gives the same weights."""
    from transformers import Wav2Vec2Config, WhisperConfig

    from lowrank_speech.models.build import build, quiet_config
    from lowrank_speech.models.dropout import set_dropout

    torch.manual_seed(1)
    shape = shape_of(preset)
    if is_whisper(preset):
        model = build("seq2seq", quiet_config(WhisperConfig(**shape)))
        set_dropout(model, 0.0)
        return model
    if preset in SHAPES:
        shape |= NORMS
    config = Wav2Vec2Config(
        **shape | {"vocab_size": lang().tokens.size, "pad_token_id": 0, "ctc_loss_reduction": "mean"}
    )
    model = build("ctc", quiet_config(config))
    for parameter in model.front_end():
        parameter.requires_grad_(False)
    set_dropout(model, 0.0)
    return model


def inputs(preset):
    """The computation of the model's inputs from samples."""
    from lowrank_speech.features.inputs import Inputs

    return Inputs("logmel") if is_whisper(preset) else Inputs("waveform")


def objective(preset, **recipe):
    """The objective of our engine; both engines train on its targets."""
    from lowrank_speech.training.config import TrainConfig
    from lowrank_speech.training.losses.loss import Materials
    from lowrank_speech.training.losses.objective import make_objective

    whisper = is_whisper(preset)
    materials = Materials(TrainConfig(**recipe), lang(), Letters() if whisper else lang().tokens)
    return make_objective("seq2seq" if whisper else "ctc", materials)


def prepare(arguments, folder):
    """Write what the rows read: cuts, the trainer's inputs, the store; returns a line about them."""
    from lhotse import CutSet

    from lowrank_speech.features.store import write_split
    from lowrank_speech.training.data.targets import with_targets

    cuts, what = speech.utterances(arguments.utterances, folder)
    targets = objective(arguments.preset)
    cuts = [with_targets(cut, targets.prepare(cut, lambda _: 10**6)) for cut in cuts]
    model, made = speech_model(arguments.preset).to(arguments.device), inputs(arguments.preset)
    whisper = is_whisper(arguments.preset)
    if whisper:
        from transformers import WhisperFeatureExtractor

        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    for cut in cuts:
        if whisper:
            array = extractor(cut.load_audio()[0], sampling_rate=16_000)["input_features"][0]
        else:
            array = made(cut).numpy()
        np.save(folder / f"{cut.id}.npy", array)
    CutSet.from_cuts(cuts).to_file(folder / "waveform.jsonl.gz")

    def stored(cut):
        x = made(cut)
        if whisper:
            return x.numpy()
        return model.conv_features(x[None].to(arguments.device), torch.tensor([len(x)]))[0].cpu().numpy()

    start = time.perf_counter()
    with torch.inference_mode():
        shift, kind = (0.01, "logmel") if whisper else (0.02, "conv")
        write_split(((cut, stored(cut)) for cut in cuts), folder / "stored.jsonl.gz", shift, kind)
    took, spoken = time.perf_counter() - start, sum(cut.duration for cut in cuts)
    weights = f"{model.parameters_total() / 1e6:.1f} M parameters, {arguments.precision} on {arguments.device}"
    return f"{len(cuts)} utterances, {spoken:.0f} s ({what}); {weights}; {kind} stored in {took:.1f} s"


def batches_of(kind, durations, size, seed):
    """The batches of a pass as lists of indices."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from lowrank_speech.features.batches import batch_indices
    from lowrank_speech.features.kept import ListedCuts

    number, updates = len(durations), -(-len(durations) // size)
    if kind == "duration":
        cuts = ListedCuts(SimpleNamespace(duration=seconds) for seconds in durations)
        seconds = size * float(cuts.durations.mean())
        while len(found := list(batch_indices(cuts, seconds, seed, 0))) > updates:
            seconds *= 1.01
        return found
    generator = torch.Generator().manual_seed(seed)
    if kind == "random":
        order = torch.randperm(number, generator=generator).tolist()
    else:
        order = get_length_grouped_indices(durations, size, min(50, updates), generator)
    return [order[i : i + size] for i in range(0, number, size)]


# -- the two engines ---------------------------------------------------------------------------------------------------


def hf_trainer(arguments, folder, lora, order, clock, **settings):
    """A transformers.Trainer that takes the utterances in ``order`` and starts and stops ``clock``."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, Wav2Vec2FeatureExtractor

    from lowrank_speech.features.store import load_cuts
    from lowrank_speech.models.build import unwrap
    from lowrank_speech.training.data.targets import targets_of

    loss = objective(arguments.preset).task
    whisper, model = is_whisper(arguments.preset), unwrap(speech_model(arguments.preset))
    model.config.use_cache = False  # Whisper's cache is useless in training
    if lora:
        targets, heads = (WHISPER_TARGETS, None) if whisper else (LORA_TARGETS, ["lm_head"])
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=heads)
        model = get_peft_model(model, config)
    cuts = list(load_cuts(folder / "waveform.jsonl.gz"))
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return len(cuts)

        def __getitem__(self, i):
            return {"input": np.load(folder / f"{cuts[i].id}.npy"), "cut": cuts[i]}

    def collate(items):  # like the collators in transformers' examples
        inputs, given = [x["input"] for x in items], [targets_of(x["cut"])[loss.name] for x in items]
        if whisper:
            decoder, labels = loss.collate(given)
            mel = torch.from_numpy(np.stack(inputs))
            return {"input_features": mel, "decoder_input_ids": decoder, "labels": labels}
        batch = extractor.pad([{"input_values": x} for x in inputs], padding=True, return_tensors="pt")
        labels, sizes = loss.collate(given)
        padded = torch.nn.utils.rnn.pad_sequence(labels.split(sizes.tolist()), batch_first=True, padding_value=-100)
        return {**batch, "labels": padded}

    class Ordered(Trainer):
        def _get_train_sampler(self, *_):
            return order

    class Told(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == WARM:
                clock.begin()
            if state.global_step == state.max_steps:
                clock.end()

    options = {"per_device_train_batch_size": arguments.batch, "num_train_epochs": 1, "learning_rate": LR}
    options |= {"weight_decay": DECAY, "adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "max_grad_norm": 1.0}
    options |= {"report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    options |= {"use_cpu": arguments.device == "cpu", "dataloader_num_workers": arguments.workers}
    options |= {"dataloader_pin_memory": arguments.device == "cuda", "remove_unused_columns": False}
    options |= {"label_names": ["labels"], "bf16": arguments.precision == "bf16", **settings}
    args = TrainingArguments(output_dir=str(folder / "trainer"), **options)
    return Ordered(model, args, data_collator=collate, train_dataset=Items(), callbacks=[Told()])


def our_stepper(arguments, lora, window=None, **settings):
    """The stepper of our engine; ``window``: Whisper's window in seconds."""
    from lowrank_speech.lowrank.lora_settings import LoraSettings
    from lowrank_speech.models.window import shorten
    from lowrank_speech.training.adapt import freeze_for, lora_on
    from lowrank_speech.training.memory.layers import checkpoint_layers, compile_layers
    from lowrank_speech.training.memory.precision import FrozenWeights
    from lowrank_speech.training.step import Stepper

    model = speech_model(arguments.preset)
    if window:
        shorten(model, window)
    freeze_for(model, "lora" if lora else "full", trains_head=True)
    if lora:
        lora_on(model, LoraSettings(rank=8, alpha=16.0))
    settings = {"precision": arguments.precision, **settings}
    loss = objective(arguments.preset, lr=LR, head_lr=LR, weight_decay=DECAY, **settings)
    recipe = loss.materials.recipe
    if recipe.frozen_dtype != "fp32":
        FrozenWeights(model, torch.bfloat16, None).hold()
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)
    model.to(arguments.device).train()
    if recipe.compile:
        compile_layers(model)
    return Stepper(model, loss.build(model), recipe, torch.device(arguments.device), 1)
