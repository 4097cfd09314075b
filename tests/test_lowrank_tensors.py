"""The tensor-by-tensor writer: the same bytes as safetensors in any order; errors for tensors that the header lacks."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowrank_speech.lowrank.tensors import DTYPES, TensorWriter


def tensors():
    torch.manual_seed(0)
    made = {f"{'zyx'[i % 3]}.{i}é": (torch.randn(i, 3) * 3).to(dtype) for i, dtype in enumerate(DTYPES)}
    transposed = torch.randn(3, 4).T
    return made | {"scalar": torch.tensor(7), "empty": torch.zeros(0, 2), "b.transposed": transposed}


def forms(made):
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_the_bytes_are_those_of_save_file_in_any_order(tmp_path, metadata):
    made = tensors()
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, tmp_path / "whole", metadata=metadata)
    for i, names in enumerate((sorted(made), sorted(made, reverse=True), list(made))):
        with TensorWriter(tmp_path / str(i), forms(made), metadata) as writer:
            for name in names:
                writer.write(name, made[name])
        assert (tmp_path / str(i)).read_bytes() == (tmp_path / "whole").read_bytes()
    read = load_file(tmp_path / "0")
    assert all(torch.equal(read[name], tensor) for name, tensor in made.items())


def test_every_order_of_the_dtypes_is_that_of_save_file(tmp_path):
    """Names that fall where the types rise: the type decides first."""
    made = {f"{99 - i}": torch.zeros(3).to(dtype) for i, dtype in enumerate(DTYPES)}
    save_file(made, tmp_path / "whole")
    with TensorWriter(tmp_path / "one", forms(made)) as writer:
        for name, tensor in made.items():
            writer.write(name, tensor)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_does_not_fit_the_header_is_refused(tmp_path):
    made = {"a": torch.zeros(2, 3), "b": torch.zeros(2)}
    unfinished = pytest.raises(ValueError, match=r"1 tensors were not written; the first one is 'b'")
    with unfinished, TensorWriter(tmp_path / "x", forms(made)) as writer:
        writer.write("a", made["a"])
        for name, tensor, message in (
            ("a", made["a"], "'a': written twice"),
            ("c", made["a"], "'c': not in the header"),
            ("b", torch.zeros(3), r"'b' is \(torch.float32, \(3,\)\); the header says"),
            ("b", torch.zeros(2, dtype=torch.float16), "'b' is"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.write(name, tensor)
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        TensorWriter(tmp_path / "y", {"a": (torch.complex64, (2,))})
    with pytest.raises(KeyError), TensorWriter(tmp_path / "z", forms(made)):
        raise KeyError("an error in the block is not hidden by that of the missing tensors")
