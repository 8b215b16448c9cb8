"""Flax's msgpack files: outputs of the Flax classes of old (scripts/make_flax_fixtures.py), and damaged files."""

import json
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import serialization
from flax.traverse_util import unflatten_dict

from jaxdiff.errors import UserError
from jaxdiff.interop import flax_files, read_autoencoder, read_text_encoder, read_text_unet

ROOT = Path(__file__).parent.parent / "fixtures" / "flax"


def weight(path, shape):
    """As scripts/make_flax_fixtures.py has it."""
    spread = 1.7 / np.sqrt(np.prod(shape[:-1])) if path.endswith("kernel") else 0.3
    value = spread * np.random.RandomState(zlib.crc32(path.encode())).uniform(-1, 1, shape)
    return (value + path.endswith("scale")).astype(np.float32)


def saved(name, target):
    """A folder as save_pretrained of the Flax class left it."""
    target.mkdir()
    shutil.copy(ROOT / name / "config.json", target)
    shapes = json.loads((ROOT / name / "tensors.json").read_text())
    tree = unflatten_dict({path: weight(path, shape) for path, shape in shapes.items()}, sep="/")
    stem = "flax_model" if name == "text_encoder" else "diffusion_flax_model"
    (target / f"{stem}.msgpack").write_bytes(serialization.to_bytes(tree))
    return target


def apply(part, *inputs, **keywords):
    def run(params, *inputs):
        return part.network.apply({"params": params}, *inputs, **keywords)

    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(part.params, *inputs)


def recorded(name):
    io = np.load(ROOT / name / "io.npz")
    return {k: np.ascontiguousarray(v.transpose(0, 2, 3, 1)) if v.ndim == 4 else v for k, v in io.items()}


def test_unet_computes_what_theirs_did(tmp_path):
    io, part = recorded("unet"), read_text_unet(saved("unet", tmp_path / "unet"))
    t = ((io["timesteps"] + 1) / 1000).astype(np.float32)
    assert np.std(io["output"]) > 0.1
    assert np.abs(apply(part, io["x"], t, io["text"]) - io["output"]).max() <= 2e-5


def test_autoencoder_computes_what_theirs_did(tmp_path):
    io, part = recorded("vae"), read_autoencoder(saved("vae", tmp_path / "vae"))
    assert np.abs(apply(part, io["x"], method="encode").mean - io["mean"]).max() <= 2e-5
    assert np.abs(apply(part, io["z"], method="decode") - io["image"]).max() <= 2e-5


def test_text_encoder_computes_what_theirs_did(tmp_path):
    io, part = recorded("text_encoder"), read_text_encoder(saved("text_encoder", tmp_path / "text"))
    assert np.abs(apply(part, io["tokens"]) - io["output"]).max() <= 2e-5


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    folder = saved("text_encoder", tmp_path / "text")
    path = folder / "flax_model.msgpack"
    tree = serialization.msgpack_restore(path.read_bytes())
    del tree["text_model"]["final_layer_norm"]["bias"]
    tree["text_model"]["extra"] = {"kernel": np.zeros((2, 3), np.float32)}
    path.write_bytes(serialization.to_bytes(tree))
    with pytest.raises(UserError, match=r"missing: final_layer_norm\.bias; unknown: extra\.weight \[3, 2\]"):
        read_text_encoder(folder)


def test_arrays_of_every_kind_are_read(tmp_path, monkeypatch):
    """bfloat16, scalars, empty ones, and large ones in parts."""
    tree = {
        "a": {"b": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3), "c": np.zeros((0, 2), np.float16)},
        "d": np.array(3.5),
        "e": np.arange(40, dtype=np.float32).reshape(4, 10),
    }
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 50)
    (tmp_path / "x.msgpack").write_bytes(serialization.to_bytes(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "x.msgpack").read_bytes()
    found = flax_files.read(tmp_path / "x.msgpack")
    assert found.keys() == {"a/b", "a/c", "d", "e"}
    for path, value in (("a/b", tree["a"]["b"]), ("a/c", tree["a"]["c"]), ("d", tree["d"]), ("e", tree["e"])):
        np.testing.assert_array_equal(found[path], value)
        assert found[path].dtype == value.dtype


def array(*fields):
    return msgpack.ExtType(1, msgpack.packb(fields))


CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 4}, "chunks": {"0": array([2], "float32", bytes(8))}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",  # a dict of 4 billion entries
        b"\x81" * 100_000,
        msgpack.packb([1, 2]),
        msgpack.packb({"a": 3}),
        msgpack.packb({"a": {1: array([1], "float32", bytes(4))}}),
        msgpack.packb({"a": msgpack.ExtType(3, b"")}),
        msgpack.packb({"a": array([-1], "float32", bytes(4))}),  # which Flax takes for 1
        msgpack.packb({"a": array([2], "float32", bytes(4))}),
        msgpack.packb({"a": array([True], "float32", bytes(4))}),
        msgpack.packb({"a": array([1], "object", bytes(8))}),
        msgpack.packb({"a": array([1], "float32")}),
        msgpack.packb({"a": CHUNKED}),
        msgpack.packb({"a": {**CHUNKED, "chunks": {}}}),
        msgpack.packb({"a": {**CHUNKED, "chunks": {"0": 1}}}),
        msgpack.packb({"a": array([1], "float32", bytes(4))})[:-2],
        msgpack.packb({"a": array([1], "float32", bytes(4))}) + b"\0",
    ],
)
def test_damaged_files_are_refused(content, tmp_path):
    path = tmp_path / "x.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.msgpack is no msgpack file of Flax"):
        flax_files.read(path)
