"""Writes files as torch.save lays them out, so that PyTorch is not needed."""

import io
import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int64): "LongStorage",
}


class Global:
    """Pickled as the bare name of something in another module."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments


class StorageId(tuple):
    pass


class Writer(pickle._Pickler):
    """Writes names of modules that are not installed, which the fast pickler would look up."""

    def persistent_id(self, obj):
        return tuple(obj) if isinstance(obj, StorageId) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(key, array, offset=0, size=None, stride=None, numel=None):
    size = array.shape if size is None else size
    if stride is None:
        stride = tuple(step // array.itemsize for step in array.strides)
    numel = array.size if numel is None else numel
    storage = StorageId(("storage", Global("torch", STORAGES[array.dtype]), key, "cpu", numel))
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, storage, offset, size, stride, False, OrderedDict())


def write(path, content, storages=None, byteorder=b"little", compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    Writer(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        for key, values in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", values)
    return path


def write_state_dict(path, arrays):
    """A state dict of `arrays` by name, each with a storage of its own."""
    table, storages = OrderedDict(), {}
    for number, (name, array) in enumerate(arrays.items()):
        array = np.ascontiguousarray(array)
        table[name] = tensor(str(number), array)
        storages[str(number)] = array.tobytes()
    return write(path, table, storages)
