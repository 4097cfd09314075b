"""``LowRankEmbedding``: a token embedding, tied to the output projection, as two factors and some exact rows.

The table E (V, d) maps tokens to inputs of a decoder, and, transposed, states h of the decoder to logits E h. Most of
its rows become N M with ``first`` M (r, d), kept semi-orthogonal, and ``second`` N (V - S, r). S rows stay as they are
(``exact``): a decoder that gets the logit of the end of text or of a time stamp slightly wrong does not stop. Together
they have S d + (V - S + d) r parameters instead of V d.

``TiedProjection`` is the output projection with the same weights; it has no parameters of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear


class LowRankEmbedding(nn.Module):
    """Token ids (...) -> embeddings (..., d); ``project``: states (..., d) -> logits (..., V).

    ``exact``: (S, d) exact rows. ``place``: (V,) int64, the position of each token's row in [exact; second].
    Raises ValueError if the shapes do not match.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear, exact: nn.Parameter, place: Tensor):
        super().__init__()
        if first.bias is not None or second.bias is not None:
            raise ValueError("the factors of an embedding have no bias")
        if first.out_features != second.in_features or exact.shape[1] != first.in_features:
            raise ValueError(
                f"the factors do not match: the first is {tuple(first.weight.shape)}, the second "
                f"{tuple(second.weight.shape)}, the exact rows {tuple(exact.shape)}"
            )
        if len(place) != len(exact) + second.out_features:
            raise ValueError(
                f"{len(place)} tokens cannot have {len(exact)} exact rows and {second.out_features} rows of factors"
            )
        self.first, self.second, self.exact = first, second, exact
        self.register_buffer("place", place)

    @classmethod
    def empty(
        cls, dense: nn.Embedding, rank: int, exact: int, device: torch.device | str | None = None
    ) -> "LowRankEmbedding":
        """Uninitialised factors and ``exact`` exact rows for ``dense``, on its device (or ``device``), in its dtype."""
        weight = dense.weight
        device = device or weight.device
        place = {"device": device, "dtype": weight.dtype}
        result = cls(
            nn.utils.skip_init(nn.Linear, dense.embedding_dim, rank, bias=False, **place),
            nn.utils.skip_init(nn.Linear, rank, dense.num_embeddings - exact, bias=False, **place),
            nn.Parameter(torch.empty(exact, dense.embedding_dim, **place)),
            torch.arange(dense.num_embeddings, device=device),
        )
        return result.requires_grad_(weight.requires_grad).train(dense.training)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.place[ids]
        number = len(self.exact)
        found = embedding((rows - number).clamp(min=0), self.second.weight) @ self.first.weight
        if not number:
            return found
        kept = embedding(rows.clamp(max=number - 1), self.exact)
        return torch.where((rows < number)[..., None], kept, found)

    def project(self, states: Tensor) -> Tensor:
        """Logits (..., V) of decoder states (..., d)."""
        logits = torch.cat([linear(states, self.exact), self.second(self.first(states))], dim=-1)
        return logits.index_select(-1, self.place)

    @property
    def in_features(self) -> int:
        """d: the size of an embedding, and of a state that is projected."""
        return self.first.in_features

    @property
    def out_features(self) -> int:
        """V: the number of tokens."""
        return len(self.place)

    @property
    def rank(self) -> int:
        return self.first.out_features

    @property
    def weight(self) -> Tensor:
        """The table E (V, d), differentiable, for code that reads an embedding's weight."""
        return torch.cat([self.exact, self.second.weight @ self.first.weight])[self.place]

    @torch.no_grad()
    def dense(self) -> nn.Embedding:
        """The equivalent ``nn.Embedding``; the product is computed in float64."""
        weight = self.second.weight
        product = (weight.double() @ self.first.weight.double()).to(weight.dtype)
        table = torch.cat([self.exact.detach(), product])[self.place]
        return nn.Embedding.from_pretrained(table, freeze=not weight.requires_grad).train(self.training)

    def extra_repr(self) -> str:
        return f"tokens={self.out_features}, rank={self.rank}, exact={len(self.exact)}"


class TiedProjection(nn.Module):
    """The output projection with the weights of ``embedding``: (..., d) -> (..., V)."""

    def __init__(self, embedding: LowRankEmbedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that its parameters are not listed twice

    def forward(self, states: Tensor) -> Tensor:
        return self._embedding[0].project(states)

    @property
    def weight(self) -> Tensor:
        """The table (V, d), for code that reads a projection's weight."""
        return self._embedding[0].weight


def place_of(tokens: int, exact: Sequence[int]) -> Tensor:
    """``place`` (V,) for ``tokens`` tokens of which the sorted ids ``exact`` keep their rows.

    Raises ValueError if an id is given twice or is not a token.
    """
    if len(set(exact)) < len(exact) or any(not 0 <= i < tokens for i in exact):
        raise ValueError(f"exact rows: expected different ids from 0 to {tokens - 1}; got {list(exact)[:10]}")
    kept = torch.zeros(tokens, dtype=torch.bool)
    kept[list(exact)] = True
    place = torch.empty(tokens, dtype=torch.int64)
    place[kept] = torch.arange(len(exact))
    place[~kept] = len(exact) + torch.arange(tokens - len(exact))
    return place
