"""Accumulate second moments of layers' inputs, and of their outputs' gradients, which whiten weights (``factors``).

While the model runs, forward hooks sum x xᵀ and x over all input frames, in float64; with ``gradients``, hooks in the
backward pass sum g gᵀ of the outputs' gradients. Masked frames (padding) do not count.

>>> moments = Moments(layers)  # name -> nn.Linear
>>> with moments.hooked():
...     for batch, mask in batches:
...         with moments.masked(mask):
...             model(batch)
>>> moments.save("moments.safetensors")

The file (safetensors) has ``{name}.second`` (d_in, d_in) = mean of x xᵀ, ``{name}.mean`` (d_in,), ``{name}.count``, and
with gradients ``{name}.output`` (d_out, d_out) = mean of g gᵀ, or its diagonal (d_out,) for the layers in ``diagonal``.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

PARTS = ("second", "mean", "count")


class Moments:
    """Accumulates the inputs of ``layers`` (name -> ``nn.Linear``), and with ``gradients`` their outputs' gradients.

    ``diagonal``: layers with too many outputs for a matrix.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], gradients: bool = False, diagonal: Collection[str] = ()):
        self.layers = dict(layers)
        self.gradients, self.diagonal = gradients, frozenset(diagonal)
        self._output: dict[str, Tensor] = {}
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
                if self.gradients:
                    handles.append(layer.register_forward_hook(self._output_hook(name)))
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

    def _output_hook(self, name: str):
        def hook(_module: nn.Module, _arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                return output
            mask = self._mask_of(name)
            if not output.requires_grad:  # nothing before this layer needs a gradient, but its output does
                output = output.detach().requires_grad_()

            @torch.no_grad()
            def count(gradient: Tensor) -> None:
                frames = _frames(name, gradient, mask)
                found = frames.square().sum(0) if name in self.diagonal else frames.T @ frames
                if not torch.isfinite(found).all():
                    raise ValueError(f"the gradients of the layer {name!r} are not finite")
                self._output[name] = self._output[name] + found if name in self._output else found

            output.register_hook(count)
            return output

        return hook

    def _mask_of(self, name: str) -> Tensor | None:
        if isinstance(self._mask, Mapping):
            return next((m for pattern, m in self._mask.items() if fnmatchcase(name, pattern)), None)
        return self._mask

    def _products(self, name: str, inputs: Tensor) -> tuple[Tensor, Tensor, int]:
        mask = self._mask_of(name)
        # Query, key and value projections read the same tensor, so its product is computed only once.
        version = None if inputs.is_inference() else inputs._version  # changes with each in-place operation
        if self._last is not None and version is not None and self._last[0] is inputs:
            _, seen, same_mask, *products = self._last
            if seen == version and same_mask is mask:
                return tuple(products)
        frames = _frames(name, inputs, mask)
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

    def output(self, name: str) -> Tensor:
        """Mean of g gᵀ (d_out, d_out), or its diagonal, float64. Raises ValueError if no gradient reached the layer."""
        self._require(name)
        if name not in self._output:
            raise ValueError(f"no gradient reached the layer {name!r}; calibrate with gradients")
        return self._output[name] / self.count[name]

    def _require(self, name: str) -> None:
        if not self.count.get(name):
            raise ValueError(f"the layer {name!r} saw no input frames; calibrate on more speech")

    def save(self, path: str | Path, others: Mapping[str, Tensor] | None = None) -> None:
        """Write the moments of all layers, and ``others``, to ``path``. Raises ValueError if a layer saw no frames."""
        tensors = dict(others or {})
        for name in self.layers:
            parts = (self.second(name), self.mean(name), torch.tensor(self.count[name]))
            tensors |= {f"{name}.{part}": t.cpu().contiguous() for part, t in zip(PARTS, parts, strict=True)}
            if self.gradients:
                tensors[f"{name}.output"] = self.output(name).cpu().contiguous()
        save_file(tensors, path)


def _frames(name: str, values: Tensor, mask: Tensor | None) -> Tensor:
    """The frames (n, d) of ``values`` (..., d) where ``mask`` is true, float64."""
    if mask is not None:
        if mask.shape != values.shape[:-1]:
            raise ValueError(
                f"the mask has shape {tuple(mask.shape)}, but the values at {name!r} have {tuple(values.shape)}"
            )
        values = values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1]).double()


class MomentsFile(Mapping):
    """Name -> second moment (d_in, d_in), float64, read on demand from a file that ``Moments.save`` wrote."""

    def __init__(self, path: str | Path):
        self._path = Path(path)
        try:
            with safe_open(self._path, "pt") as file:
                keys = list(file.keys())
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
        self._keys = frozenset(keys)
        self._names = [key.removesuffix(".second") for key in keys if key.endswith(".second")]
        if not self._names:
            raise ValueError(f"{path} has no second moments; give a file that the stage calibrate wrote")

    def read(self, key: str) -> Tensor:
        """The tensor ``key``."""
        with safe_open(self._path, "pt") as file:
            return file.get_tensor(key)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self.read(f"{name}.second")

    def mean(self, name: str) -> Tensor:
        """Mean of the layer's inputs (d_in,), float64."""
        return self.means[name]

    @property
    def means(self) -> "Part":
        """Name -> mean of the layer's inputs (d_in,), float64."""
        return Part(self, "mean")

    @property
    def outputs(self) -> "Part":
        """Name -> second moment of the gradients of the layer's outputs, float64; empty without gradients."""
        return Part(self, "output")

    def count(self, name: str) -> int:
        """Number of frames behind the averages."""
        return int(self.read(f"{name}.count"))

    def has(self, key: str) -> bool:
        """Whether the file has the tensor ``key``."""
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def utterances_of(path: str | Path | None) -> int:
    """How many utterances the moments in ``path`` are from; 0 without a file, or if it does not say."""
    if path is None:
        return 0
    file = MomentsFile(path)
    return int(file.read("utterances")) if file.has("utterances") else 0


class Part(Mapping):
    """One part (``mean``, ``output``) of a ``MomentsFile``, by the layers' names."""

    def __init__(self, file: MomentsFile, part: str):
        self._file, self._part = file, part

    def __getitem__(self, name: str) -> Tensor:
        key = f"{name}.{self._part}"
        if not self._file.has(key):
            raise KeyError(name)
        return self._file.read(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._file if self._file.has(f"{name}.{self._part}"))

    def __len__(self) -> int:
        return sum(1 for _ in self)
