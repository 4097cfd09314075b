"""Replace computations of transformers' classes in place; weights and names do not change.

WavLM            its attention reads the weights of its projections and never calls them. Adapters on them would not
                 train, hooks would not see inputs, and factors would be multiplied out at each step. The replacement
                 calls the projections; the outputs are the same.
data2vec-audio   its first positional convolution writes into the padding, and the next four read the padding.
HuBERT           with ``conv_pos_batch_norm`` (mHuBERT-147) the norm writes into the padding, and the convolution reads
                 the padding.

The latter two bugs make an utterance's output depend on its batch. Without padding the outputs are the same.
"""

import types

from torch import Tensor, nn
from torch.nn import functional as F


def correct(hf: nn.Module) -> None:
    """Apply the replacements that the module's docstring lists, in place."""
    for module in hf.modules():
        name = type(module).__name__
        if name == "WavLMAttention":
            module.torch_multi_head_self_attention = types.MethodType(_wavlm_attention, module)
        elif name == "Data2VecAudioPositionalConvEmbedding":
            module.forward = types.MethodType(_data2vec_positions, module)
        elif name == "HubertPositionalConvEmbedding" and module.batch_norm is not None:
            module.forward = types.MethodType(_hubert_positions, module)


def _wavlm_attention(
    self: nn.Module, hidden: Tensor, mask: Tensor | None, position_bias: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Attention over hidden (B, F, D) with bool mask (B, F) and gated position bias (B * heads, F, F)."""
    batch, frames, width = hidden.shape
    query, key, value = (
        projection(hidden).view(batch, frames, self.num_heads, self.head_dim).transpose(1, 2)
        for projection in (self.q_proj, self.k_proj, self.v_proj)
    )
    bias = position_bias.view(batch, self.num_heads, frames, frames).to(query.dtype)
    if mask is not None:
        bias = bias.masked_fill(mask.ne(1)[:, None, None, :], float("-inf"))
    dropout = self.dropout if self.training else 0.0
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
    return self.out_proj(found.transpose(1, 2).reshape(batch, frames, width)), None


def _data2vec_positions(self: nn.Module, hidden: Tensor) -> Tensor:
    """Positional embedding (B, F, D) of ``hidden`` (B, F, D): zero in the padding after each convolution."""
    valid, hidden = _valid(hidden), hidden.transpose(1, 2)
    for layer in self.layers:
        hidden = layer(hidden) * valid
    return hidden.transpose(1, 2)


def _hubert_positions(self: nn.Module, hidden: Tensor) -> Tensor:
    """Positional embedding (B, F, D) of ``hidden`` (B, F, D): zero in the padding after the norm."""
    normed = self.batch_norm(hidden.transpose(1, 2)) * _valid(hidden)
    return self.activation(self.padding(self.conv(normed))).transpose(1, 2)


def _valid(hidden: Tensor) -> Tensor:
    """Mask (B, 1, F) in hidden's dtype: 0 in the padding, which the encoders zero before the positional embedding."""
    spoken = (hidden != 0).any(-1)
    valid = spoken.flip(1).long().cumsum(1).flip(1) > 0  # ONNX has no cumulative product
    return valid[:, None].to(hidden.dtype)
