"""The reader of PyTorch files: values, layouts, and refusal of everything that is not a plain state dict.

The files are written here, as torch.save lays them out, so that PyTorch is not needed; files that PyTorch
itself wrote are read in test_monai.py.
"""

import io
import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from brainldm.runtime.errors import UserError
from brainldm.weights.torch_file import read_torch_state_dict

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int64): "LongStorage",
}


class _Global:
    """Pickled as the bare name of something in another module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class _StorageId(tuple):
    pass


class _Pickler(pickle._Pickler):
    """Writes names of modules that are not installed, which the fast pickler would look up."""

    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, _StorageId) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def _tensor(key, array, offset=0, size=None, stride=None, numel=None):
    size = array.shape if size is None else size
    if stride is None:
        stride = tuple(step // array.itemsize for step in array.strides)
    numel = array.size if numel is None else numel
    storage = _StorageId(("storage", _Global("torch", STORAGES[array.dtype]), key, "cpu", numel))
    rebuild = _Global("torch._utils", "_rebuild_tensor_v2")
    return _Call(rebuild, storage, offset, size, stride, False, OrderedDict())


def _write(path, content, storages=None, byteorder=b"little", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, values in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", values)
    return path


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_reads_every_type(tmp_path, dtype):
    array = VALUES.astype(dtype)
    path = _write(tmp_path / "w.pt", {"a.weight": _tensor("0", array)}, {"0": array.tobytes()})
    found = read_torch_state_dict(path)
    assert list(found) == ["a.weight"] and found["a.weight"].dtype == dtype
    np.testing.assert_array_equal(found["a.weight"], array)


def test_reads_views_scalars_empties_and_shared_storages(tmp_path):
    content = OrderedDict(
        transposed=_tensor("0", VALUES, size=(3, 2), stride=(1, 3)),
        part=_tensor("0", VALUES, offset=1, size=(2,), stride=(3,)),
        scalar=_tensor("0", VALUES, offset=5, size=(), stride=()),
        empty=_tensor("0", VALUES, size=(0, 2), stride=(2, 1)),
    )
    found = read_torch_state_dict(_write(tmp_path / "w.pt", content, {"0": VALUES.tobytes()}))
    np.testing.assert_array_equal(found["transposed"], VALUES.T)
    np.testing.assert_array_equal(found["part"], [1, 4])
    assert found["scalar"].shape == () and found["scalar"] == 5
    assert found["empty"].shape == (0, 2)
    found["part"][0] = 9  # a copy of its own, writable
    assert found["transposed"][1, 0] == 1


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", None])
def test_wrappers_and_the_parallel_prefix_are_removed(tmp_path, wrapper):
    table = {"module.a": _tensor("0", VALUES), "module.b": _tensor("0", VALUES)}
    content = table if wrapper is None else {"epoch": 3, wrapper: table}
    found = read_torch_state_dict(_write(tmp_path / "w.pt", content, {"0": VALUES.tobytes()}))
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
)
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path, module, name):
    mark = tmp_path / "mark"
    content = {"a": _Call(_Global(module, name), f"touch {mark}")}
    with pytest.raises(UserError, match=rf"{module}\.{name}"):
        read_torch_state_dict(_write(tmp_path / "w.pt", content))
    assert not mark.exists()


def test_the_malicious_file_would_have_worked(tmp_path):
    """So that the test above cannot pass for want of an attack."""
    mark = tmp_path / "mark"
    path = _write(tmp_path / "w.pt", {"a": _Call(_Global("os", "system"), f"touch {mark}")})
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    assert mark.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"numel": 7},
        {"offset": 1},
        {"size": (2, 4)},
        {"stride": (4, 1)},
        {"offset": -1},
        {"size": (2, 3, 1)},
        {"size": (10**9, 10**9), "stride": (0, 0)},
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_the_storage_are_refused(tmp_path, change):
    path = _write(tmp_path / "w.pt", {"a": _tensor("0", VALUES, **change)}, {"0": VALUES.tobytes()})
    with pytest.raises(UserError, match="damaged"):
        read_torch_state_dict(path)


def test_missing_short_and_compressed_storages_are_refused(tmp_path):
    content = {"a": _tensor("0", VALUES)}
    paths = [
        _write(tmp_path / "missing.pt", content),
        _write(tmp_path / "short.pt", content, {"0": VALUES.tobytes()[:-1]}),
        _write(tmp_path / "packed.pt", content, {"0": bytes(24)}, compression=zipfile.ZIP_DEFLATED),
        _write(tmp_path / "big_endian.pt", content, {"0": VALUES.tobytes()}, byteorder=b"big"),
    ]
    for path in paths:
        with pytest.raises(UserError, match=path.name):
            read_torch_state_dict(path)


def test_cut_and_changed_files_are_refused(tmp_path):
    array = np.arange(1000, dtype=np.float32)
    path = _write(tmp_path / "w.pt", {"a": _tensor("0", array)}, {"0": array.tobytes()})
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut short"):
            read_torch_state_dict(path)
    place = whole.index(array.tobytes()[100:200])
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(UserError, match="damaged"):
        read_torch_state_dict(path)


def test_files_that_are_something_else_are_refused(tmp_path):
    with pytest.raises(UserError, match="no file"):
        read_torch_state_dict(tmp_path / "absent.pt")
    other = tmp_path / "other.pt"
    other.write_bytes(b"not weights at all" * 4)
    with pytest.raises(UserError, match="not a PyTorch file"):
        read_torch_state_dict(other)
    with pytest.raises(UserError, match="no state dict"):
        read_torch_state_dict(_write(tmp_path / "list.pt", [1, 2]))
    with pytest.raises(UserError, match="not tensors: lr, epoch"):
        read_torch_state_dict(_write(tmp_path / "mixed.pt", {"lr": 0.1, "epoch": 3}))
