"""Reads PyTorch state dicts (`torch.save` of name -> tensor) without PyTorch and without running their code.

A `.pt` file is a zip archive with a pickle and one member for each tensor's values. A pickle may call any
function it names; the reader here knows the few that tensors need and refuses a file that names another.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from brainldm.runtime.errors import UserError

# Keys under which training scripts put the state dict beside other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")

_LARGEST_PICKLE = 64 * 2**20
"""Bytes of names and shapes: the tensors themselves lie outside."""

_STORAGE_TYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
}


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    dtype: np.dtype
    values: np.ndarray


def _rebuild_tensor(storage, offset, size, stride, *_) -> np.ndarray:
    """The tensor's values, copied; every index is checked to lie inside the storage."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise ValueError(f"a tensor with offset {offset}, size {size} and strides {stride}")
    count = prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (last >= len(storage.values) or count > len(storage.values)):
        raise ValueError(f"a tensor of {size} values reaches beyond its storage of {len(storage.values)}")
    strides = [step * storage.dtype.itemsize for step in stride]
    window = storage.values[offset:] if count else storage.values[:0]
    return np.lib.stride_tricks.as_strided(window, size, strides, writeable=False).copy()


def _rebuild_parameter(data, *_) -> np.ndarray:
    return data


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
} | {("torch", name): _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items()}


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A member of an archive, unless it says that it is larger than it can be: a few bytes can unpack to gigabytes."""
    size = archive.getinfo(name).file_size
    if size > most:
        raise ValueError(f"{name} has {size} bytes, where at most {most} are possible")
    return archive.read(name)


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str, path: Path):
        super().__init__(io.BytesIO(_member(archive, f"{root}/data.pkl", _LARGEST_PICKLE)))
        self._archive, self._root, self._path = archive, root, path
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise UserError(
                f"{self._path} asks to load {module}.{name}, which is not part of a state dict. Loading it "
                "could run code from the file, so it was refused and nothing was run. If you trust the "
                "file, save its tensors alone with PyTorch: torch.save(model.state_dict(), path)."
            )
        return _ALLOWED[module, name]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(count, int):
            raise ValueError(f"an unknown kind of stored object, {kind!r}")
        if key not in self._storages:
            member = self._archive.getinfo(f"{self._root}/data/{key}")
            expected = count * storage_type.dtype.itemsize
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != expected:
                raise ValueError(f"storage {key} has {member.file_size} bytes, not {expected}")
            values = np.frombuffer(self._archive.read(member), storage_type.dtype)
            self._storages[key] = _Storage(storage_type.dtype, values)
        return self._storages[key]


def _root(archive: zipfile.ZipFile) -> str:
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if name.count("/") == 1]
    roots = [root for root in roots if f"{root}/data.pkl" in archive.namelist()]
    if not roots:
        raise ValueError("it holds no data.pkl")
    root = roots[0]
    order = f"{root}/byteorder"
    if order in archive.namelist() and _member(archive, order, len(b"little")) != b"little":
        raise ValueError("its numbers are big-endian")
    return root


def _unwrap(content: Any, path: Path) -> dict[str, np.ndarray]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no state dict, which is a table from names to tensors.")
    strange = [str(key) for key, value in content.items() if not isinstance(value, np.ndarray)]
    if strange:
        raise UserError(
            f"{path} is no plain state dict; entries that are not tensors: {', '.join(strange[:5])}. "
            "Save the network's state dict alone with PyTorch: torch.save(model.state_dict(), path)."
        )
    return dict(content)


def read_torch_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a state dict from a `.pt` or `.pth` file that PyTorch (1.6 or later) wrote.

    Tensors of float32, float16, bfloat16, float64 and int64 are read, in the type they are stored in. A
    table under `state_dict`, `model_state_dict`, `model` or `net` is taken out.

    Returns:
        Name to array, in the file's order.

    Raises:
        UserError: no such file, not such a file, damaged or cut short, not a state dict, or its
            pickle names something that a state dict does not need (the name is in the message).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path} to read weights from.")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            zip_start = file.read(2) == b"PK"
        raise UserError(
            f"{path} is cut short: it begins as a PyTorch file and has no end. Copy or download it again."
            if zip_start
            else f"{path} is not a PyTorch file in the zip format that torch.save has written since version "
            "1.6. An older file can be converted by loading and saving it with PyTorch."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            content = _Unpickler(archive, _root(archive), path).load()
    except UserError:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        NotImplementedError,
        OverflowError,
        MemoryError,
    ) as error:
        raise UserError(
            f"{path} is damaged or is not a PyTorch state dict ({type(error).__name__}: {error}). Copy or "
            "download it again and compare its checksum."
        ) from error
    return _unwrap(content, path)
