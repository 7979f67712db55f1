"""The reader of PyTorch files: values, layouts, and refusal of everything that is not a plain state dict.

The files are written here, as torch.save lays them out, so that PyTorch is not needed; files that PyTorch
itself wrote are read in test_monai.py.
"""

import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_files import STORAGES, Call, Global, tensor, write

from brainldm.runtime.errors import UserError
from brainldm.weights.torch_file import read_torch_state_dict

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_reads_every_type(tmp_path, dtype):
    array = VALUES.astype(dtype)
    path = write(tmp_path / "w.pt", {"a.weight": tensor("0", array)}, {"0": array.tobytes()})
    found = read_torch_state_dict(path)
    assert list(found) == ["a.weight"] and found["a.weight"].dtype == dtype
    np.testing.assert_array_equal(found["a.weight"], array)


def test_reads_views_scalars_empties_and_shared_storages(tmp_path):
    content = OrderedDict(
        transposed=tensor("0", VALUES, size=(3, 2), stride=(1, 3)),
        part=tensor("0", VALUES, offset=1, size=(2,), stride=(3,)),
        scalar=tensor("0", VALUES, offset=5, size=(), stride=()),
        empty=tensor("0", VALUES, size=(0, 2), stride=(2, 1)),
    )
    found = read_torch_state_dict(write(tmp_path / "w.pt", content, {"0": VALUES.tobytes()}))
    np.testing.assert_array_equal(found["transposed"], VALUES.T)
    np.testing.assert_array_equal(found["part"], [1, 4])
    assert found["scalar"].shape == () and found["scalar"] == 5
    assert found["empty"].shape == (0, 2)
    found["part"][0] = 9  # a copy of its own, writable
    assert found["transposed"][1, 0] == 1


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net", None])
def test_wrappers_are_removed(tmp_path, wrapper):
    table = {"a": tensor("0", VALUES), "b": tensor("0", VALUES)}
    content = table if wrapper is None else {"epoch": 3, wrapper: table}
    found = read_torch_state_dict(write(tmp_path / "w.pt", content, {"0": VALUES.tobytes()}))
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize(
    ("module", "name"), [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
)
def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path, module, name):
    mark = tmp_path / "mark"
    content = {"a": Call(Global(module, name), f"touch {mark}")}
    with pytest.raises(UserError, match=rf"{module}\.{name}"):
        read_torch_state_dict(write(tmp_path / "w.pt", content))
    assert not mark.exists()


def test_the_malicious_file_would_have_worked(tmp_path):
    """So that the test above cannot pass for want of an attack."""
    mark = tmp_path / "mark"
    path = write(tmp_path / "w.pt", {"a": Call(Global("os", "system"), f"touch {mark}")})
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
    path = write(tmp_path / "w.pt", {"a": tensor("0", VALUES, **change)}, {"0": VALUES.tobytes()})
    with pytest.raises(UserError, match="damaged"):
        read_torch_state_dict(path)


def test_missing_short_and_compressed_storages_are_refused(tmp_path):
    content = {"a": tensor("0", VALUES)}
    paths = [
        write(tmp_path / "missing.pt", content),
        write(tmp_path / "short.pt", content, {"0": VALUES.tobytes()[:-1]}),
        write(tmp_path / "packed.pt", content, {"0": bytes(24)}, compression=zipfile.ZIP_DEFLATED),
        write(tmp_path / "big_endian.pt", content, {"0": VALUES.tobytes()}, byteorder=b"big"),
        write(tmp_path / "bomb.pt", content, {"0": VALUES.tobytes()}, byteorder=bytes(2**20)),
    ]
    for path in paths:
        with pytest.raises(UserError, match=path.name):
            read_torch_state_dict(path)


def test_cut_and_changed_files_are_refused(tmp_path):
    array = np.arange(1000, dtype=np.float32)
    path = write(tmp_path / "w.pt", {"a": tensor("0", array)}, {"0": array.tobytes()})
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
        read_torch_state_dict(write(tmp_path / "list.pt", [1, 2]))
    with pytest.raises(UserError, match="not tensors: lr, epoch"):
        read_torch_state_dict(write(tmp_path / "mixed.pt", {"lr": 0.1, "epoch": 3}))
