"""The two engines that bench_trainer.py compares, on the same model and data, and the batches of a pass."""

import time
from types import SimpleNamespace

import numpy as np
import torch

import speech

SHAPES = {
    "small": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048},
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
NORMS = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
LORA_TARGETS = ["q_proj", "v_proj", "intermediate_dense", "output_dense"]
LR, DECAY, BETAS, WARM = 1e-4, 0.01, (0.9, 0.98), 2


# -- data and model ----------------------------------------------------------------------------------------------------


def lang():
    from lowrank_speech.lang.load import Lang
    from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
    from lowrank_speech.lang.tokens import CharTokens

    tokens = CharTokens.build("abcdefghijklmnopqrstuvwxyz' ")
    return Lang("char", tokens, ("en",), Normaliser(NormaliseConfig()), "0" * 64)


def speech_model(preset):
    """The same weights at each call."""
    from transformers import Wav2Vec2Config

    from lowrank_speech.models.folder import build, quiet_config
    from lowrank_speech.models.presets import preset_named
    from lowrank_speech.models.sources import set_dropout
    from lowrank_speech.models.speech import Meta, SpeechModel

    torch.manual_seed(1)
    shape = SHAPES[preset] | NORMS if preset in SHAPES else preset_named(preset).config
    config = Wav2Vec2Config(
        **shape | {"vocab_size": lang().tokens.size, "pad_token_id": 0, "ctc_loss_reduction": "mean"}
    )
    hf = build("ctc", quiet_config(config))
    hf.freeze_feature_encoder()
    set_dropout(hf, 0.0)
    return SpeechModel(hf, Meta("wav2vec2", "ctc"))


def prepare(arguments, folder):
    """What the rows read: cuts, the trainer's inputs, stored front end. A line about it."""
    from lhotse import CutSet

    from lowrank_speech.features.inputs import Inputs
    from lowrank_speech.features.store import write_split

    cuts, what = speech.utterances(arguments.utterances, folder)
    model, inputs = speech_model(arguments.preset).to(arguments.device), Inputs("waveform")
    for cut in cuts:
        np.save(folder / f"{cut.id}.npy", inputs(cut).numpy())
    CutSet.from_cuts(cuts).to_file(folder / "waveform.jsonl.gz")
    start = time.perf_counter()
    with torch.inference_mode():
        samples = ((cut, inputs(cut)[None].to(arguments.device)) for cut in cuts)
        arrays = ((cut, model.conv_features(x, torch.tensor([x.shape[1]]))[0].cpu().numpy()) for cut, x in samples)
        write_split(arrays, folder / "conv.jsonl.gz", 0.02, "conv")
    took, spoken = time.perf_counter() - start, sum(cut.duration for cut in cuts)
    weights = f"{model.parameters_total() / 1e6:.1f} M parameters, {arguments.precision} on {arguments.device}"
    return f"{len(cuts)} utterances, {spoken:.0f} s ({what}); {weights}; the front end stored in {took:.1f} s"


def batches_of(kind, durations, size, seed):
    """The batches of a pass as lists of numbers."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    from lowrank_speech.features.batches import batch_numbers
    from lowrank_speech.features.kept import ListedCuts

    number, updates = len(durations), -(-len(durations) // size)
    if kind == "duration":
        cuts = ListedCuts(SimpleNamespace(duration=seconds) for seconds in durations)
        seconds = size * float(cuts.durations.mean())
        while len(found := list(batch_numbers(cuts, seconds, seed, 0))) > updates:
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
    """transformers' trainer that takes the utterances in ``order`` and tells the clock."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments, Wav2Vec2FeatureExtractor

    from lowrank_speech.features.store import load_cuts

    model, tokens = speech_model(arguments.preset).hf, lang()
    if lora:
        config = LoraConfig(r=8, lora_alpha=16, target_modules=LORA_TARGETS, modules_to_save=["lm_head"])
        model = get_peft_model(model, config)
    texts = [(c.id, c.supervisions[0].text) for c in load_cuts(folder / "waveform.jsonl.gz")]
    labels = [(name, tokens.tokens.encode(tokens.normalise(text, "en"))) for name, text in texts]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, i):
            return {"input_values": np.load(folder / f"{labels[i][0]}.npy"), "labels": torch.tensor(labels[i][1])}

    def collate(items):  # as DataCollatorCTCWithPadding of transformers' examples
        batch = extractor.pad([{"input_values": x["input_values"]} for x in items], padding=True, return_tensors="pt")
        padded = torch.nn.utils.rnn.pad_sequence([x["labels"] for x in items], batch_first=True, padding_value=-100)
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


def our_stepper(arguments, lora, **settings):
    from lowrank_speech.stages.train import Lora
    from lowrank_speech.training.adapt import freeze_for, lora_on
    from lowrank_speech.training.config import TrainConfig
    from lowrank_speech.training.layers import checkpoint_layers
    from lowrank_speech.training.objective import Objective
    from lowrank_speech.training.precision import FrozenWeights
    from lowrank_speech.training.step import Stepper

    model = speech_model(arguments.preset)
    freeze_for(model, "lora" if lora else "full", trains_head=True)
    if lora:
        lora_on(model, Lora(rank=8, alpha=16.0))
    settings = {"precision": arguments.precision, **settings}
    recipe = TrainConfig(device=arguments.device, lr=LR, head_lr=LR, weight_decay=DECAY, **settings)
    if recipe.frozen_dtype != "fp32":
        FrozenWeights(model.hf, torch.bfloat16, None).hold()
    if recipe.gradient_checkpointing:
        checkpoint_layers(model)
    model.to(arguments.device).train()
    return Stepper(model, Objective(model, recipe, lang()), recipe, torch.device(arguments.device), 1)
