"""torch.save's files: those that torch wrote, those that would execute something, and damaged ones."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxdiff.errors import UserError
from jaxdiff.interop import torch_files

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"
FORMATS = ("state.pt", "state_legacy.pt")


class Attack:
    """Calls a function when unpickled, as any pickle may."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def as_zip(path, content, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for name, value in members.items():
            archive.writestr(f"archive/{name}", value)
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_tensors_are_those_that_torch_wrote(name):
    found, wanted = torch_files.read(ROOT / name), np.load(ROOT / "state.npz")
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert found[key].shape == value.shape
        np.testing.assert_array_equal(np.asarray(found[key], np.float32), value, key)
    kinds = {"half": "float16", "bfloat": "bfloat16", "count": "int64"}
    assert {key: found[key].dtype.name for key in kinds} == kinds


@pytest.mark.parametrize("wrap", [lambda path, data: as_zip(path, data), lambda path, data: path.write_bytes(data)])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_in_a_file_is_executed(tmp_path, wrap, protocol):
    """Each would leave a file behind; reading must not, and must say how to convert an honest one."""
    mark = tmp_path / "mark"
    import os

    for attack in (
        Attack(os.system, f"touch {mark}"),
        Attack(eval, f"open({str(mark)!r}, 'w')"),
        Attack(Path.touch, mark),
        {"weight": Attack(exec, f"open({str(mark)!r}, 'w')")},
    ):
        wrap(tmp_path / "x.pt", pickle.dumps(attack, protocol))
        with pytest.raises(UserError, match="weights_only=True"):
            torch_files.read(tmp_path / "x.pt")
    assert not mark.exists()


def test_state_dicts_of_modules_are_read():
    """As torch.save(module.state_dict()) leaves them: torch hangs the versions of its modules on the dict."""
    found = torch_files.read(ROOT / "of_module.pt")
    assert {name: value.shape for name, value in found.items()} == {
        **{"0.weight": (2, 2), "0.bias": (2,), "1.weight": (2,), "1.bias": (2,)},
        **{"1.running_mean": (2,), "1.running_var": (2,), "1.num_batches_tracked": ()},
    }
    np.testing.assert_array_equal(found["1.weight"], 1.0)
    assert found["0.weight"].std() > 0.1


def test_modules_are_refused_by_name():
    with pytest.raises(UserError, match=r"torch\.nn\.modules\.linear\.Linear"):
        torch_files.read(ROOT / "module.pt")


def _tensor(offset, shape, strides, count=4, kind="FloatStorage"):
    """A data.pkl with one tensor, spelled out as torch's pickler does."""
    lines = [
        b"\x80\x02}U\x01wctorch._utils\n_rebuild_tensor_v2\n((U\x07storagectorch\n",
        kind.encode(),
        b"\nU\x010U\x03cpu",
    ]
    numbers = [offset, *shape, *strides]
    assert all(type(n) is int for n in numbers)

    def integers(values):
        return b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"

    lines += [b"I%d\ntQ" % count, b"I%d\n" % offset, integers(shape), integers(strides), b"\x89}tRs."]
    return b"".join(lines)


def test_tensor_spelled_out(tmp_path):
    data = np.arange(4, dtype=np.float32)
    path = as_zip(tmp_path / "x.pt", _tensor(1, (3,), (1,)), **{"data/0": data.tobytes()})
    np.testing.assert_array_equal(torch_files.read(path)["w"], data[1:])


@pytest.mark.parametrize(
    ("content", "data"),
    [
        (_tensor(0, (5,), (1,)), bytes(16)),  # one too many
        (_tensor(2, (2, 2), (1, 2)), bytes(16)),
        (_tensor(-1, (1,), (1,)), bytes(16)),
        (_tensor(0, (2,), (-1,)), bytes(16)),
        (_tensor(0, (2,), (1, 1)), bytes(16)),
        (_tensor(0, (2**62, 2**62), (2**62, 1)), bytes(16)),
        (_tensor(0, (4,), (1,)), bytes(15)),  # cut
        (_tensor(0, (4,), (1,), kind="QuantStorage"), bytes(16)),
        (pickle.dumps({}), b""),
        (pickle.dumps({"a": 3}), b""),
        (pickle.dumps([1]), b""),
        (b"", b""),
        (b"\x80\x02(", b""),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, content, data):
    path = as_zip(tmp_path / "x.pt", content, **{"data/0": data})
    with pytest.raises(UserError, match="not a plain state dict"):
        torch_files.read(path)


@pytest.mark.parametrize("name", FORMATS)
def test_cut_and_flipped_files_are_read_or_refused(name, tmp_path):
    """No other error than ours, whichever byte is wrong."""
    whole = (ROOT / name).read_bytes()
    random = np.random.default_rng(0)
    path, ends = tmp_path / "x.pt", set()
    for _ in range(100):
        content = bytearray(whole)
        content[random.integers(len(content))] ^= 1 << random.integers(8)
        path.write_bytes(content[: random.integers(len(content))] if random.random() < 0.3 else content)
        try:
            ends.add("read" if torch_files.read(path) else "empty")
        except UserError as error:
            assert str(error)
            ends.add("refused")
    assert ends == {"read", "refused"}
