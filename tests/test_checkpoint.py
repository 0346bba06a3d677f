"""Files: written whole or not at all, refused by name when they are something else."""

import os
import stat

import numpy as np
import pytest
import safetensors.numpy
from conftest import Window, weight_hash

import chainrule as cr
from chainrule.checkpoint import load_tensors, save_tensors


def test_round_trip_of_awkward_arrays(tmp_path):
    base = np.arange(24.0).reshape(4, 6)
    arrays = {
        "transposed": base.T, "reversed": base[::-1, ::-2], "swapped": base.astype(">f8"),
        "scalar": np.float32(3.0).reshape(()), "empty": np.zeros((0, 3)), "ids": np.arange(3),
        "bytes": np.frombuffer("Zürich".encode(), np.uint8),
    }  # fmt: skip
    save_tensors(tmp_path / "f", arrays, {"b": [1.5, None], "a": "é"})
    tensors, config = load_tensors(tmp_path / "f")
    assert config == {"b": [1.5, None], "a": "é"}
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
        assert tensors[name].shape == array.shape


def test_library_layers_are_rebuilt_from_the_file(tmp_path):
    model = cr.nn.Sequential(
        cr.nn.Embedding(7, 3), cr.nn.Flatten(), cr.nn.LayerNorm(6),
        cr.nn.Dense(6, 4, "elu", param=0.5), cr.nn.Dropout(0.1), cr.nn.Dense(4, 2, bias=False),
    ).init(0)  # fmt: skip
    cr.save(model, tmp_path / "m")
    again = cr.load(tmp_path / "m")
    assert weight_hash(again) == weight_hash(model)
    ids = np.array([[1, 2], [6, 0]])
    np.testing.assert_array_equal(again.eval()(ids).data, model.eval()(ids).data)


def test_a_module_of_ones_own_asks_for_its_class(tmp_path):
    model = Window().init(0)
    cr.save(model, tmp_path / "m")
    with pytest.raises(ValueError, match=r"cr\.load\(path, model\)"):
        cr.load(tmp_path / "m")
    assert weight_hash(cr.load(tmp_path / "m", Window())) == weight_hash(model)
    with pytest.raises(OSError, match="the model's is"):
        cr.load(tmp_path / "m", Window(hidden=11))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"not a model at all", b"\xff" * 200])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(OSError, match="cut short or not a safetensors file"):
        cr.load(tmp_path / "f")


def test_every_cut_is_noticed(tmp_path):
    path = tmp_path / "f"
    cr.save(cr.nn.Dense(3, 2).init(0), path)
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        with pytest.raises(cr.ChainruleError):
            cr.load(path)


def test_other_safetensors_files_and_missing_files_are_named(tmp_path):
    safetensors.numpy.save_file({"x": np.ones(2)}, tmp_path / "f")
    with pytest.raises(OSError, match="not one of chainrule's"):
        cr.load(tmp_path / "f")
    with pytest.raises(OSError, match="no such file"):
        cr.load(tmp_path / "missing")
    with pytest.raises(OSError, match="cannot write"):
        cr.save(cr.nn.Dense(3, 2).init(0), tmp_path / "no" / "folder")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    cr.save(cr.nn.Dense(3, 2).init(0), path)
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        cr.save(cr.nn.Dense(3, 2).init(1), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f"]


def test_mode_and_symbolic_links_are_kept(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    cr.save(cr.nn.Dense(3, 2).init(0), target)
    target.chmod(0o640)
    link.symlink_to(target)
    cr.save(cr.nn.Dense(3, 2).init(1), link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert weight_hash(cr.load(target)) == weight_hash(cr.nn.Dense(3, 2).init(1))
