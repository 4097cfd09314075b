"""Settings of the smallest models that the tests train, and small models of every supported architecture."""

import torch
import transformers

from lowrank_speech.models.build import quiet_config, wrap
from lowrank_speech.models.registry import family_class, family_of
from lowrank_speech.models.speech import Meta

WAV2VEC2 = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": [8, 8],
    "conv_kernel": [40, 16],
    "conv_stride": [20, 16],
    "num_feat_extract_layers": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 12,
    "max_source_positions": 50,  # a window of one second
    "max_target_positions": 24,
    "init_std": 0.05,
}

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 12,
    "classifier_proj_size": 8,
    "pad_token_id": 0,
}
WAVEFORM = ENCODER | {
    "conv_dim": [16, 16],
    "conv_kernel": [10, 8],
    "conv_stride": [10, 8],
    "num_feat_extract_layers": 2,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
ADAPTER = {"add_adapter": True, "num_adapter_layers": 2, "output_hidden_size": 24}
BANDS = 8  # of w2v-BERT's filterbank; two frames are stacked
FBANK = ENCODER | {"feature_projection_input_dim": 2 * BANDS, "conv_depthwise_kernel_size": 5}

# The architectures and what of their configs changes the computation: name -> model type, keys of the config.
MEMBERS = {
    "wav2vec2": ("wav2vec2", WAVEFORM),
    "wav2vec2-group": ("wav2vec2", WAVEFORM | GROUP),
    "wav2vec2-adapter": ("wav2vec2", WAVEFORM | ADAPTER),
    "mms": ("wav2vec2", WAVEFORM | {"adapter_attn_dim": 4}),
    "hubert": ("hubert", WAVEFORM),
    "hubert-group": ("hubert", WAVEFORM | GROUP),
    "mhubert": ("hubert", WAVEFORM | {"conv_pos_batch_norm": True, "feat_proj_layer_norm": False}),
    "wavlm": ("wavlm", WAVEFORM),
    "wavlm-group": ("wavlm", WAVEFORM | GROUP),
    "data2vec-audio": ("data2vec-audio", WAVEFORM | {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5}),
    "w2v-bert": ("wav2vec2-bert", FBANK),
    "w2v-bert-adapter": ("wav2vec2-bert", FBANK | {"add_adapter": True, "use_intermediate_ffn_before_adapter": True}),
}


def plain(member, task="ctc", quiet=True, **changes):
    """Transformers' own model of a member of ``MEMBERS``: the same weights at each call, none of them a constant."""
    model_type, keys = MEMBERS[member]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **keys | changes)
    published = family_class(family_of(model_type, member)).published(config, task)
    hf = getattr(transformers, published)(quiet_config(config) if quiet else config).eval()
    with torch.no_grad():
        for tensor in [*hf.parameters(), *(b for b in hf.buffers() if b.is_floating_point())]:
            tensor += 0.05 * torch.rand_like(tensor)
    return hf


def member(name, task="ctc", **changes):
    """``plain`` as a SpeechModel."""
    hf = plain(name, task, **changes)
    return wrap(hf, Meta(family_of(hf.config.model_type, name), task))


def speech(model, *seconds):
    """Padded inputs of ``model`` for noise of some seconds, and their lengths."""
    generator = torch.Generator().manual_seed(1)
    shape, rate = ((2 * BANDS,), 50) if model.family == "w2v-bert" else ((), 16_000)
    made = [torch.randn(int(rate * s), *shape, generator=generator) for s in seconds]
    return torch.nn.utils.rnn.pad_sequence(made, batch_first=True), torch.tensor([len(x) for x in made])
