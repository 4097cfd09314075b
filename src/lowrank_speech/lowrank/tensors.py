"""Write a safetensors file tensor by tensor: first names, dtypes and shapes, then values in any order.

>>> with TensorWriter("out.safetensors", {"w": (torch.float32, (2, 3))}) as writer:
...     writer.write("w", torch.zeros(2, 3))

The bytes equal those of ``safetensors.torch.save_file``, which needs all tensors at once.

Format: https://huggingface.co/docs/safetensors. The length of the header in 8 bytes, a JSON header, and the values, all
little endian. Tensors are sorted by type, widest first, then by name, so that all values are aligned.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

# In safetensors' storage order.
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
Form = tuple[torch.dtype, tuple[int, ...]]


class TensorWriter:
    """Writes the tensors of ``forms`` (name -> dtype and shape) to ``path``, each once, in any order.

    The end of the ``with`` block checks that all tensors were written. Raises ValueError for a dtype that is not in
    ``DTYPES``, an unknown name, a tensor that is written twice or never, or one of another dtype or shape.
    """

    def __init__(self, path: str | Path, forms: Mapping[str, Form], metadata: Mapping[str, str] | None = None):
        if sys.byteorder != "little":
            raise ValueError("safetensors files can only be written on little-endian machines")
        unknown = next((dtype for dtype, _ in forms.values() if dtype not in DTYPES), None)
        if unknown is not None:
            raise ValueError(f"tensors of the type {unknown} cannot be written")
        order = list(DTYPES)
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        self._forms = {name: (dtype, tuple(shape)) for name, (dtype, shape) in forms.items()}
        self._offsets: dict[str, int] = {}
        end = 0
        for name in sorted(self._forms, key=lambda name: (order.index(self._forms[name][0]), name)):
            dtype, shape = self._forms[name]
            start, end = end, end + math.prod(shape) * dtype.itemsize
            self._offsets[name] = start
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._start = 8 + len(text)
        self._file = Path(path).open("wb")  # noqa: SIM115, closed by __exit__
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._left = set(self._forms)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the values of ``name``."""
        if name not in self._left:
            raise ValueError(f"tensor {name!r}: {'written twice' if name in self._forms else 'not in the header'}")
        form = (tensor.dtype, tuple(tensor.shape))
        if form != self._forms[name]:
            raise ValueError(f"tensor {name!r} is {form}; the header says {self._forms[name]}")
        self._file.seek(self._start + self._offsets[name])
        values = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(values.view(torch.uint8).numpy())
        self._left.discard(name)

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{len(self._left)} tensors were not written; the first one is {min(self._left)!r}")
