"""The reader of Keras files: both layouts, and refusal of what is damaged or ambiguous."""

import sys

import h5py
import numpy as np
import pytest
from synthseg_weights import random_weights, write_keras_h5

from brainldm.runtime.errors import UserError
from brainldm.weights.keras_file import read_keras_h5


@pytest.mark.parametrize("whole_model", [False, True])
def test_arrays_are_named_by_layer_and_weight(tmp_path, whole_model):
    weights = random_weights(num_labels=3)
    write_keras_h5(tmp_path / "w.h5", weights, whole_model)
    found = read_keras_h5(tmp_path / "w.h5")
    assert set(found) == set(weights)
    assert all(np.array_equal(found[name], value) for name, value in weights.items())


def test_a_damaged_file_is_refused(tmp_path):
    write_keras_h5(tmp_path / "w.h5", random_weights(num_labels=3))
    content = (tmp_path / "w.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5").write_text("no weights\n")
    for name in ("cut.h5", "text.h5"):
        with pytest.raises(UserError, match="damaged, or no HDF5 file"):
            read_keras_h5(tmp_path / name)
    with pytest.raises(UserError, match="no file"):
        read_keras_h5(tmp_path / "absent.h5")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for model in ("a", "b"):
            file.create_dataset(f"{model}/dense/kernel:0", data=np.zeros(2))
    with pytest.raises(UserError, match="two arrays are called dense/kernel"):
        read_keras_h5(tmp_path / "w.h5")


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"brainldm\[synthseg\]"):
        read_keras_h5(tmp_path / "w.h5")
