"""Brains inside a page."""

import base64
import gzip

from brainldm.reports import viewer
from brainldm.reports.viewer import alternating, make_viewer, niivue


def volumes(count, size=300):
    return [("generated" if k % 2 else "real", f"brain {k}", bytes(size)) for k in range(count)]


def test_the_library_of_nilearn_can_stand_in_a_page():
    code = niivue()
    assert code is not None and "</script" not in code.lower() and len(code) > 1e6


def test_as_many_as_fit_are_kept_in_their_order():
    found = make_viewer(volumes(10), most_bytes=1700)  # 400 bytes each as text
    assert [shown.label for shown in found.volumes] == ["brain 0", "brain 1", "brain 2", "brain 3"]
    assert found.groups == {"real": [(0, "brain 0"), (2, "brain 2")], "generated": [(1, "brain 1"), (3, "brain 3")]}
    assert base64.b64decode(found.volumes[0].data) == bytes(300)


def test_without_library_or_room_there_is_no_viewer(monkeypatch):
    assert make_viewer(volumes(10), most_bytes=700) is None
    monkeypatch.setattr(viewer, "_LIBRARY", ("nilearn", "nothing.js"))
    assert make_viewer(volumes(10)) is None
    monkeypatch.setattr(viewer, "_LIBRARY", ("no_such_package", "x.js"))
    assert make_viewer(volumes(10)) is None


def test_groups_take_turns():
    assert list(alternating([["a", "b", "c"], ["x"], []])) == ["a", "x", "b", "c"]


def test_volumes_of_eight_bits_are_small_and_keep_their_values():
    import nibabel as nib
    import numpy as np

    from brainldm.volumes.nifti import volume_bytes

    data = np.linspace(-0.1, 1.1, 60).reshape(3, 4, 5)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(volume_bytes(data, np.eye(4), bits=8)))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), np.clip(data, 0, 1), atol=0.5 / 255 + 1e-6)
