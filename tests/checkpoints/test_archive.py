"""Every kind of file gives the tensors that went in; no file gets anything run, or anything but a refusal in words."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mapet.checkpoints import stand_ins
from mapet.checkpoints.archive import read_tensors, state_dict_of
from mapet.errors import ModelError

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(value, path: Path, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)
        assert found[name].dtype == tensor.dtype


def network() -> nn.Module:
    torch.manual_seed(0)
    tail = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1, bias=False))
    return nn.Sequential(collections.OrderedDict(stem=nn.Conv2d(3, 4, 3), tail=tail))


@FORMATS
def test_a_state_dict(tmp_path, zipped):
    state = network().state_dict()
    same(read_tensors(save(state, tmp_path / "weights.pth", zipped)), state)


def test_safetensors(tmp_path):
    state = network().state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    found = read_tensors(str(tmp_path / "weights.safetensors"))
    same({name: found[name] for name in state}, state)
    assert set(found) == set(state)


@FORMATS
def test_every_type_of_number(tmp_path, zipped):
    dtypes = (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
        *((torch.uint16, torch.float8_e4m3fn) if zipped else ()),  # which PyTorch did not have before 1.6
    )
    state = {str(dtype): torch.arange(7).to(dtype) for dtype in dtypes}
    same(read_tensors(save(state, tmp_path / "weights.pth", zipped)), state)


@FORMATS
def test_views_scalars_and_empty_tensors(tmp_path, zipped):
    base = torch.arange(24.0).view(4, 6)
    state = {
        "transposed": base.T,
        "inner": base[1:3, 2:5],
        "strided": base[::2, 1::3],
        "expanded": torch.arange(3.0).expand(5, 3),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "parameter": nn.Parameter(base[2]),
    }
    same(read_tensors(save(state, tmp_path / "weights.pth", zipped)), state)


@FORMATS
def test_shared_storage_stays_shared(tmp_path, zipped):
    base = torch.arange(6.0)
    found = read_tensors(save({"head": base[:2], "all": base}, tmp_path / "weights.pth", zipped))
    found["head"][0] = 100.0
    assert found["all"][0] == 100
    assert read_tensors(tmp_path / "weights.pth")["all"][0] == 0


@FORMATS
def test_a_training_checkpoint(tmp_path, zipped):
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    values = {"args": argparse.Namespace(lr=1e-3), "epoch": 3, "optimizer": optimizer.state_dict(), "model": model.state_dict()}
    path = save(values, tmp_path / "checkpoint.pth", zipped)
    same(state_dict_of(path), model.state_dict())
    found = read_tensors(path)
    assert torch.equal(found["optimizer.state.1.exp_avg"], optimizer.state_dict()["state"][1]["exp_avg"])
    assert {name.partition(".")[0] for name in found} == {"optimizer", "model"}


def test_the_first_key_that_is_there_is_taken(tmp_path):
    state = {"weight": torch.ones(2)}
    path = save({"state_dict": {"weight": torch.zeros(2)}, "model": state}, tmp_path / "weights.pth")
    same(state_dict_of(path), state)
    same(state_dict_of(path, keys=("ema", "state_dict")), {"weight": torch.zeros(2)})
    same(state_dict_of(save(state, tmp_path / "bare.pth")), state)
    tensor_called_model = {"model": torch.ones(1), "head": torch.ones(2)}
    same(state_dict_of(save(tensor_called_model, tmp_path / "odd.pth")), tensor_called_model)


@FORMATS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_whose_class_is_gone(tmp_path, zipped, monkeypatch):
    source = (
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = torch.nn.Parameter(torch.arange(3.0))\n        self.register_buffer('kept', torch.ones(2))\n"
        "        self.register_buffer('passing', torch.ones(2), persistent=False)\n        self.inner = torch.nn.Linear(2, 3)\n"
        "        self.none = None\n        self.register_parameter('absent', None)\n"
    )
    (tmp_path / "gone_package.py").write_text(source)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import gone_package  # pyright: ignore[reportMissingImports]

        model = gone_package.Net()
        path = save(model, tmp_path / "encoder.pkl", zipped)
        expected = model.state_dict()
    del sys.modules["gone_package"]
    (tmp_path / "gone_package.py").unlink()
    same(read_tensors(path), expected)
    assert list(expected) == ["w", "kept", "inner.weight", "inner.bias"]
    assert "gone_package" not in sys.modules


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("compile_it", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 3, 8, 8))])
def test_torchscript(tmp_path, monkeypatch, dtype, compile_it):
    model = network().eval()
    model.tail.register_buffer("resolution", torch.tensor(448))
    compiled = compile_it(model).to(dtype)
    compiled.save(str(tmp_path / "scripted.pt"))
    monkeypatch.delattr(torch.jit, "load")
    same(read_tensors(tmp_path / "scripted.pt"), dict(compiled.state_dict()))


# Hostile and broken files


class Planted:
    """Calls a function of one's choice when it is unpickled."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@FORMATS
def test_a_planted_call_is_not_made(tmp_path, zipped):
    mark = tmp_path / "was_here"
    calls = [Planted(os.system, f"touch {mark}"), Planted(eval, f"__import__('os').mkdir({str(mark)!r})"), Planted(mark.exists)]
    path = save({"weight": torch.ones(2), "other": calls, "more": {"x": calls[0]}}, tmp_path / "weights.pth", zipped)
    with pytest.raises(ModelError, match=r"weights\.pth is refused: its pickle calls os\.system; .*Nothing in it was"):
        read_tensors(path)
    assert not mark.exists()
    with pytest.raises(FileExistsError):  # what the file does to who runs it: both calls were made
        torch.load(path, weights_only=False)


def test_an_onnx_file_is_said_to_be_one(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a\x12\x07pytorch")
    with pytest.raises(ModelError, match=r"model\.onnx is an ONNX file.*Give the backbone that it was exported from"):
        read_tensors(tmp_path / "model.onnx")


def rewrite(path: Path, **records: bytes) -> Path:
    """The same zip with other records; `data_pkl` is data.pkl."""
    replaced = {name.replace("_", "."): content for name, content in records.items()}
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in kept.items():
            new.writestr(name, replaced.get(name.partition("/")[2], content))
    return path


def described(tmp_path: Path, tree) -> Path:
    """A file with a storage "0" of four float32 and a data.pkl that gives `tree`."""
    path = save({"weight": torch.arange(4.0)}, tmp_path / "weights.pth")
    content = io.BytesIO()
    pickler = pickle.Pickler(content, protocol=2)
    pickler.persistent_id = lambda value: value.identity if isinstance(value, Reference) else None  # pyright: ignore
    pickler.dump(tree)
    return rewrite(path, data_pkl=content.getvalue())


class Reference:
    def __init__(self, *identity):
        self.identity = identity


def tensor(storage=("storage", torch.FloatStorage, "0", "cpu", 4), offset=0, size=(4,), stride=(1,)):
    return Planted(torch._utils._rebuild_tensor_v2, Reference(*storage), offset, size, stride, False, None)


def test_a_description_made_by_hand_is_read(tmp_path):
    path = described(tmp_path, {"weight": tensor(offset=1, size=(2, 1), stride=(2, 1))})
    same(read_tensors(path), {"weight": torch.tensor([[1.0], [3.0]])})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": (5,)}, "not resizable"),
        ({"offset": 3, "size": (2,)}, "not resizable"),
        ({"size": (2, 2), "stride": (4, 1)}, "not resizable"),
        ({"offset": -1}, "invalid storage offset"),
        ({"size": (-1,)}, "overflow"),
        ({"stride": (-1,)}, "overflow"),
        ({"size": (2**62,), "stride": (0,)}, "repeats its numbers"),
        ({"size": (2**40,), "stride": (0,)}, "repeats its numbers: its tensors have 4398046511104 bytes"),
        ({"size": (4.0,)}, "invalid combination"),
        ({"size": (2, 2)}, "unequal size length"),
        ({"storage": ("storage", torch.FloatStorage, "0", "cpu", 2**40)}, "should hold 1099511627776 numbers and has less"),
        ({"storage": ("storage", torch.DoubleStorage, "0", "cpu", 4)}, "should hold 4 numbers and has less"),
        ({"storage": ("storage", torch.FloatStorage, "../../../etc/passwd", "cpu", 4)}, "no record 'data/../../../etc/passwd'"),
        ({"storage": ("storage", argparse.Namespace, "0", "cpu", 4)}, "without a name, a type or a length"),
        ({"storage": ("storage", torch.QInt8Storage, "0", "cpu", 4)}, "a storage of QInt8Storage, which is not read here"),
        ({"storage": ("url", "http://example.org")}, "not a storage"),
    ],
)
def test_a_tensor_that_lies_about_itself_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        read_tensors(described(tmp_path, {"weight": tensor(**changes)}))


def nested(depth: int):
    tree = tensor()
    for _ in range(depth):
        tree = {"x": tree}
    return tree


def circular():
    tree = {"weight": tensor()}
    tree["again"] = tree
    return tree


def doubling():
    tree = [tensor()]
    for _ in range(60):
        tree = [tree, tree]
    return tree


@pytest.mark.parametrize("tree", [nested(80), circular(), doubling()], ids=["deep", "circular", "doubling"])
def test_a_tree_without_end_is_refused(tmp_path, monkeypatch, tree):
    monkeypatch.setattr(stand_ins, "_MOST_NODES", 10_000)
    with pytest.raises(ModelError, match=r"nests more than|repeats its parts more often|has used before"):
        read_tensors(described(tmp_path, tree))


@pytest.mark.parametrize("name", ["a\nmapet: all is well", "a\x1b]0;x\x07", "a\u202eb"])
def test_names_that_would_forge_a_line_are_refused(tmp_path, name):
    """F25."""
    save_file({name: torch.ones(1)}, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", save({name: torch.ones(1)}, tmp_path / "a.pth")):
        with pytest.raises(ModelError, match=r"a tensor called 'a\\.*control characters") as error:
            read_tensors(path)
        assert str(error.value).isprintable()


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = save({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"two tensors called 'a\.b'"):
        read_tensors(path)


def test_compressed_records_are_refused(tmp_path):
    path = save({"weight": torch.zeros(10_000)}, tmp_path / "weights.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if "data/" in name else zipfile.ZIP_STORED)
    with pytest.raises(ModelError, match="is compressed"):
        read_tensors(tmp_path / "bomb.pth")


@FORMATS
def test_a_file_cut_off_anywhere_is_refused(tmp_path, zipped):
    whole = save({"weight": torch.randn(40), "bias": torch.randn(3)}, tmp_path / "weights.pth", zipped).read_bytes()
    for length in range(0, len(whole) - 1, 11):
        (tmp_path / "part.pth").write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be read"):
            read_tensors(tmp_path / "part.pth")


def test_numbers_that_end_with_the_file_are_refused(tmp_path):
    path = save({"weight": torch.ones(4)}, tmp_path / "old.pth", zipped=False)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="it is cut off"):
        read_tensors(path)
    path = save({"weight": torch.ones(4)}, tmp_path / "new.pth")
    sizes, too_large = ((length).to_bytes(4, "little") * 2 for length in (16, 10**6))
    content = path.read_bytes()
    index = content.index(b"PK\x01\x02")
    path.write_bytes(content[:index] + content[index:].replace(sizes, too_large))
    with pytest.raises(ModelError, match="cut off or overlap"):
        read_tensors(path)


def test_a_changed_byte_among_the_numbers_is_refused(tmp_path):
    path = save({"weight": torch.arange(4.0)}, tmp_path / "weights.pth")
    content, numbers = path.read_bytes(), torch.arange(4.0).numpy().tobytes()
    path.write_bytes(content.replace(numbers, numbers[:-1] + b"\x00"))
    with pytest.raises(ModelError, match="checksum"):
        read_tensors(path)


def test_a_file_without_checksums_is_read(tmp_path):
    from torch.utils.serialization import config

    with config.patch({"save.compute_crc32": False}):
        path = save({"weight": torch.arange(4.0)}, tmp_path / "weights.pth")
    assert {record.CRC for record in zipfile.ZipFile(path).infolist()} == {0}
    same(read_tensors(path), {"weight": torch.arange(4.0)})


@FORMATS
def test_changed_bytes_give_tensors_or_a_refusal(tmp_path, zipped):
    whole = save(network().state_dict(), tmp_path / "weights.pth", zipped).read_bytes()
    draw = torch.Generator().manual_seed(1)
    described_until = whole.index(b"data/0") if zipped else whole.index(b"running_var")
    for _ in range(300):
        changed = bytearray(whole)
        for place in torch.randint(described_until, (2,), generator=draw).tolist():
            changed[place] = int(torch.randint(256, (), generator=draw))
        (tmp_path / "changed.pth").write_bytes(changed)
        with contextlib.suppress(ModelError):
            read_tensors(tmp_path / "changed.pth")


def test_a_zip_of_the_other_byte_order_is_turned_round(tmp_path):
    path = save({"weight": torch.tensor([1.0, 3.0])}, tmp_path / "weights.pth")
    content = torch.tensor([1.0, 3.0]).numpy().astype(">f4").tobytes()
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, record in kept.items():
            new.writestr(name, content if name.endswith("data/0") else b"big" if name.endswith("byteorder") else record)
    same(read_tensors(path), {"weight": torch.tensor([1.0, 3.0])})


def test_a_legacy_file_of_the_other_byte_order_is_refused(tmp_path):
    path = save({"weight": torch.ones(2)}, tmp_path / "weights.pth", zipped=False)
    path.write_bytes(path.read_bytes().replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    with pytest.raises(ModelError, match="byte order"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x80\x04N.", b"PK\x03\x04 and no more", b"12345678{"])
def test_files_of_anything_else_are_refused_with_a_way_out(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pth cannot be read as a file of weights: .*Download or copy it again"):
        read_tensors(tmp_path / "weights.pth")


def test_no_file_and_no_tensors(tmp_path):
    with pytest.raises(ModelError, match="There is no file"):
        read_tensors(tmp_path / "nothing.pth")
    with pytest.raises(ModelError, match="There is no file"):
        read_tensors(tmp_path)
    with pytest.raises(ModelError, match="holds no tensors"):
        read_tensors(save({"epoch": 3}, tmp_path / "weights.pth"))
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as other:
        other.writestr("array.npy", b"1")
    with pytest.raises(ModelError, match=r"zip without data\.pkl"):
        read_tensors(tmp_path / "arrays.npz")


def test_numbers_are_mapped_and_not_copied(tmp_path):
    path = save({"weight": torch.zeros(2**20)}, tmp_path / "weights.pth")
    tensors = read_tensors(path)
    assert str(path) in Path("/proc/self/maps").read_text() if sys.platform == "linux" else tensors
