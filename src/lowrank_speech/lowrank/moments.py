"""Accumulate second moments of layers' inputs. Activation-aware factors use them for whitening.

While the model runs, forward hooks sum x xᵀ and x over all input frames, in float64. Masked frames (padding) do not
count.

>>> moments = Moments(layers)  # name -> nn.Linear
>>> with moments.hooked():
...     for batch, mask in batches:
...         with moments.masked(mask):
...             model(batch)
>>> moments.save("moments.safetensors")

The file (safetensors) has ``{name}.second`` (d_in, d_in) = mean of x xᵀ, ``{name}.mean`` (d_in,) and ``{name}.count``.
"""

import contextlib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PARTS = ("second", "mean", "count")


class Moments:
    """Accumulates the inputs of ``layers`` (name -> ``nn.Linear``)."""

    def __init__(self, layers: Mapping[str, nn.Linear]):
        self.layers = dict(layers)
        self.count = dict.fromkeys(self.layers, 0)
        self._second: dict[str, Tensor] = {}
        self._sum: dict[str, Tensor] = {}
        self._mask: Tensor | Mapping[str, Tensor] | None = None
        self._last: tuple | None = None  # input, its version, mask, and the products

    @contextlib.contextmanager
    def hooked(self) -> Iterator["Moments"]:
        """Count every forward pass of the layers inside."""
        handles = []
        try:
            for name, layer in self.layers.items():
                handles.append(layer.register_forward_pre_hook(self._hook(name)))
            yield self
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def masked(self, mask: Tensor | Mapping[str, Tensor] | None) -> Iterator[None]:
        """Count only frames inside where ``mask``, bool (B, F), is true; the layers' inputs are (B, F, d_in).

        A mapping has a mask for each pattern (``fnmatch``) of layer names. The first match applies; layers without a
        match count all their frames.
        """
        self._mask = mask
        try:
            yield
        finally:
            self._mask = self._last = None

    def _hook(self, name: str):
        @torch.no_grad()
        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            second, total, count = self._products(name, arguments[0])
            if name in self._second:
                self._second[name] += second
                self._sum[name] += total
            else:
                self._second[name], self._sum[name] = second.clone(), total.clone()
            self.count[name] += count

        return hook

    def _products(self, name: str, inputs: Tensor) -> tuple[Tensor, Tensor, int]:
        mask = self._mask
        if isinstance(mask, Mapping):
            mask = next((m for pattern, m in mask.items() if fnmatchcase(name, pattern)), None)
        # Query, key and value projections read the same tensor, so its product is computed only once.
        version = None if inputs.is_inference() else inputs._version  # changes with each in-place operation
        if self._last is not None and version is not None and self._last[0] is inputs:
            _, seen, same_mask, *products = self._last
            if seen == version and same_mask is mask:
                return tuple(products)
        frames = inputs
        if mask is not None:
            if mask.shape != inputs.shape[:-1]:
                raise ValueError(
                    f"the mask has shape {tuple(mask.shape)}, but the inputs of {name!r} have {tuple(inputs.shape)}"
                )
            frames = inputs[mask.to(inputs.device)]
        frames = frames.reshape(-1, inputs.shape[-1]).double()
        products = (frames.T @ frames, frames.sum(0), len(frames))
        self._last = (inputs, version, mask, *products)
        return products

    def second(self, name: str) -> Tensor:
        """Mean of x xᵀ (d_in, d_in), float64. Raises ValueError if the layer saw no frames."""
        self._require(name)
        return self._second[name] / self.count[name]

    def mean(self, name: str) -> Tensor:
        """Mean of x (d_in,), float64. Raises ValueError if the layer saw no frames."""
        self._require(name)
        return self._sum[name] / self.count[name]

    def _require(self, name: str) -> None:
        if not self.count.get(name):
            raise ValueError(f"the layer {name!r} saw no input frames; calibrate on more speech")

    def save(self, path: str | Path) -> None:
        """Write the moments of all layers to ``path``. Raises ValueError if a layer saw no frames."""
        tensors = {}
        for name in self.layers:
            parts = (self.second(name), self.mean(name), torch.tensor(self.count[name]))
            tensors |= {f"{name}.{part}": t.cpu().contiguous() for part, t in zip(PARTS, parts, strict=True)}
        save_file(tensors, path)


class MomentsFile(Mapping):
    """Name -> second moment (d_in, d_in), float64, read on demand from a file that ``Moments.save`` wrote."""

    def __init__(self, path: str | Path):
        self._path = Path(path)
        try:
            with safe_open(self._path, "pt") as file:
                keys = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        self._names = [key.removesuffix(".second") for key in keys if key.endswith(".second")]
        if not self._names:
            raise ValueError(f"{path} has no second moments; give a file that the stage calibrate wrote")

    def _read(self, key: str) -> Tensor:
        with safe_open(self._path, "pt") as file:
            return file.get_tensor(key)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(f"{name}.second")

    def mean(self, name: str) -> Tensor:
        """Mean of the layer's inputs (d_in,), float64."""
        return self._read(f"{name}.mean")

    @property
    def means(self) -> "Means":
        """Name -> mean of the layer's inputs (d_in,), float64."""
        return Means(self)

    def count(self, name: str) -> int:
        """Number of frames behind the averages."""
        return int(self._read(f"{name}.count"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Means(Mapping):
    """The means of a ``MomentsFile``, by the layers' names."""

    def __init__(self, file: MomentsFile):
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file:
            raise KeyError(name)
        return self._file.mean(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)
