"""Folders and files as people have them: what is unambiguous is read, of the rest one line says what it is."""

import gzip
import io
import json
import pickle
import shutil
import sys
import types
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxdiff.commands import main
from jaxdiff.config.files import read_run
from jaxdiff.errors import UserError
from jaxdiff.interop import read_openai, read_unet
from jaxdiff.interop import safetensors as ours
from jaxdiff.interop.weights import read_file
from jaxdiff.training.checkpoints import Checkpoints
from tests.interop.test_openai import flags_of, weight

ROOT = Path(__file__).parent.parent / "fixtures" / "interop"
PLAIN, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
TENSORS = safetensors.numpy.load_file(ROOT / "defaults" / "unet" / PLAIN)
EMA = {name: value + 1 for name, value in TENSORS.items()}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 669500\n"
HTML = b"\n<!DOCTYPE html>\n<html><head></head></html>\n" * 40


class _Storage:
    """torch.FloatStorage, by reference."""

    def __init__(self, value):
        self.value = value


class _Tensor:
    def __init__(self, value):
        self.value = np.ascontiguousarray(value, np.float32)

    def __reduce__(self):
        value, utils = self.value, sys.modules["torch._utils"]
        strides = tuple(n // value.itemsize for n in value.strides)
        return utils._rebuild_tensor_v2, (_Storage(value), 0, value.shape, strides, False, {})


class Namespace:
    """argparse.Namespace, as trainers keep it; any class that is not known."""


def torch_save(path, tree):
    """What torch.save(tree, path) writes, of dicts and lists with arrays in them."""

    def tensors(node):
        if isinstance(node, dict):
            return {name: tensors(value) for name, value in node.items()}
        if isinstance(node, list):
            return [tensors(value) for value in node]
        return _Tensor(node) if isinstance(node, np.ndarray) else node

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    exec("def _rebuild_tensor_v2(*args): pass", utils.__dict__)
    exec("class FloatStorage: pass", torch.__dict__)
    torch.FloatStorage.__module__ = "torch"
    kept, buffer = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, _Storage):
                return None
            kept.append(obj.value)
            return "storage", torch.FloatStorage, str(len(kept) - 1), "cpu", obj.value.size

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        Pickler(buffer, protocol=2).dump(tensors(tree))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for i, value in enumerate(kept):
            archive.writestr(f"archive/data/{i}", value.tobytes())


def prefixed(prefix, tensors=TENSORS):
    return {prefix + name: value for name, value in tensors.items()}


def save(name, tensors=TENSORS):
    """Writes the folder's weights: as safetensors, or as torch does."""

    def make(unet):
        write = (
            torch_save if name.endswith((".bin", ".pt", ".ckpt")) else lambda p, t: safetensors.numpy.save_file(t, p)
        )
        write(unet / name, tensors)

    return make


def content(name, data):
    return lambda unet: (unet / name).write_bytes(data)


def shards(pattern, index=None, parts=3, missing=()):
    def make(unet):
        names = sorted(TENSORS)
        files = {name: pattern.format(1 + i % parts, parts) for i, name in enumerate(names)}
        for i, file in enumerate(sorted(set(files.values()))):
            if i not in missing:
                save(file, {name: TENSORS[name] for name in names if files[name] == file})(unet)
        if index:
            (unet / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))

    return make


def all_of(*makes):
    return lambda unet: [make(unet) for make in makes]


def folder_of(name, tensors, **config):
    """A folder beside unet, as EMAModel.save_pretrained leaves it."""

    def make(unet):
        target = Path(
            shutil.copytree(unet, unet.parent / name, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        )
        about = json.loads((unet / "config.json").read_text()) | {"decay": 0.9999, "optimization_step": 7} | config
        (target / "config.json").write_text(json.dumps(about))
        safetensors.numpy.save_file(tensors, target / PLAIN)

    return make


LIT = {f"model_ema.{('diffusion_model.' + name).replace('.', '')}": value for name, value in EMA.items()}
READ = {  # what lies in unet -> which weights are read, and what is said of it
    "half precision": (save("diffusion_pytorch_model.fp16.safetensors"), TENSORS, "half precision"),
    "half and full": (
        all_of(save(PLAIN), save("diffusion_pytorch_model.fp16.safetensors", EMA)),
        TENSORS,
        "",
    ),
    "raw variant alone": (save("diffusion_pytorch_model.non_ema.safetensors"), TENSORS, "raw weights"),
    "raw variant beside": (all_of(save(BIN, EMA), save("diffusion_pytorch_model.non_ema.safetensors")), EMA, ""),
    "averaged variant": (all_of(save(PLAIN), save("diffusion_pytorch_model.ema.safetensors", EMA)), EMA, "averaged"),
    "raw variant, .bin": (save("diffusion_pytorch_model.non_ema.bin"), TENSORS, "raw weights"),
    "own variant": (save("diffusion_pytorch_model.mine.safetensors"), TENSORS, "variant 'mine'"),
    "new shards of a variant": (
        shards(
            "diffusion_pytorch_model.fp16-{:05}-of-{:05}.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        TENSORS,
        "half precision",
    ),
    "old shards of a variant": (
        shards(
            "diffusion_pytorch_model-{:05}-of-{:05}.fp16.safetensors",
            "diffusion_pytorch_model.fp16.safetensors.index.json",
        ),
        TENSORS,
        "half precision",
    ),
    "shards of .bin": (
        shards("diffusion_pytorch_model-{:05}-of-{:05}.bin", "diffusion_pytorch_model.bin.index.json"),
        TENSORS,
        "",
    ),
    "shards without their index": (shards("diffusion_pytorch_model-{:05}-of-{:05}.safetensors"), TENSORS, ""),
    "shards and an index that is a pointer, .bin beside": (
        all_of(content(f"{PLAIN}.index.json", POINTER), save(BIN)),
        TENSORS,
        "Git LFS",
    ),
    "pointer, .bin beside": (all_of(content(PLAIN, POINTER), save(BIN)), TENSORS, "is read instead"),
    "page, half beside": (
        all_of(content(PLAIN, HTML), save("diffusion_pytorch_model.fp16.safetensors")),
        TENSORS,
        "web page",
    ),
    "name of another library": (all_of(save("model.safetensors"), content("optimizer.bin", b"x")), TENSORS, "the only"),
    "pytorch_model.bin": (save("pytorch_model.bin"), TENSORS, "the only ones"),
    "safetensors named .bin": (
        lambda unet: (save(PLAIN)(unet), (unet / PLAIN).rename(unet / BIN)),
        TENSORS,
        "",
    ),
    "torch's named .safetensors": (lambda unet: (save(BIN)(unet), (unet / BIN).rename(unet / PLAIN)), TENSORS, ""),
    **{
        f"prefix {prefix}": (save(PLAIN, prefixed(prefix)), TENSORS, "")
        for prefix in ("module.", "_orig_mod.", "model.", "unet.", "module._orig_mod.", "_forward_module.model.")
    },
    "prefix of an average": (save(PLAIN, prefixed("ema_model.")), TENSORS, "averaged weights"),
    "average beside": (save(PLAIN, prefixed("model.") | prefixed("ema.", EMA)), EMA, "not those under 'model.'"),
    "average beside plain names": (save(PLAIN, TENSORS | prefixed("ema.", EMA)), EMA, "averaged"),
    "ema_pytorch": (
        save(
            BIN, prefixed("online_model.") | prefixed("ema_model.", EMA) | {"initted": np.ones(1), "step": np.ones(1)}
        ),
        EMA,
        "averaged weights",
    ),
    "AveragedModel": (save(BIN, prefixed("module.") | {"n_averaged": np.ones(())}), TENSORS, "averaged weights"),
    "Lightning's LitEma": (
        save(BIN, {"state_dict": prefixed("model.diffusion_model.") | LIT | {"model_ema.decay": np.ones(1)}}),
        EMA,
        "model_ema",
    ),
    "trainer's dicts": (
        save(BIN, {"model": TENSORS, "ema": EMA, "opt": {"state": {0: {"m": TENSORS}}, "param_groups": []}, "step": 1}),
        EMA,
        "averaged weights: those under 'ema/'",
    ),
    "arguments beside": (
        save(BIN, {"model_state_dict": TENSORS, "args": Namespace(), "rng": np.ones(3)}),
        TENSORS,
        "",
    ),
    "no average in several dicts": (
        save(BIN, {"model": TENSORS, "discriminator": {"a": np.ones(2), "b": np.ones(2)}}),
        TENSORS,
        "no averaged ones",
    ),
    "a list of averages": (
        save(BIN, {"model": TENSORS, "ema": {"decay": 0.99, "shadow_params": list(EMA.values())}}),
        EMA,
        "averaged weights: ema/shadow_params",
    ),
    "folder of an average": (all_of(save(PLAIN), folder_of("unet_ema", EMA)), EMA, "averaged weights: those of"),
    "all fields of an average": (
        all_of(
            save(PLAIN), folder_of("unet_ema", EMA, min_decay=0.0, update_after_step=0, use_ema_warmup=True, power=1)
        ),
        EMA,
        "not unet",
    ),
}


@pytest.fixture
def model(tmp_path):
    """A pipeline's folder without weights."""
    target = tmp_path / "model"
    shutil.copytree(ROOT / "defaults", target, ignore=shutil.ignore_patterns("*.safetensors", "io.npz"))
    return target


def same(found, tensors, tmp_path):
    """Whether the parameters are those of the tensors: of a folder that holds these alone."""
    wanted = Path(shutil.copytree(ROOT / "defaults" / "unet", tmp_path / "wanted"))
    safetensors.numpy.save_file(tensors, wanted / PLAIN)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(read_unet(wanted).params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", READ)
def test_what_is_unambiguous_is_read(case, model, tmp_path):
    make, tensors, said = READ[case]
    make(model / "unet")
    found = read_unet(model)
    same(found, tensors, tmp_path)
    assert said in "\n".join(found.notes) and bool(said) == bool(found.notes), found.notes


REFUSED = {  # what lies in unet -> what is said of it
    "pointer": (content(PLAIN, POINTER), "pointer of Git LFS, not the file itself (669,500 bytes): run `git lfs pull`"),
    "pointer, .bin": (content(BIN, POINTER), "Git LFS"),
    "pointer, index": (content(f"{PLAIN}.index.json", POINTER), "Git LFS"),
    "git-annex": (content(PLAIN, b"/annex/objects/SHA256E-s1\n"), "git annex get"),
    "page": (content(PLAIN, HTML), "web page (HTML)"),
    "page, .bin": (content(BIN, HTML), "web page (HTML)"),
    "answer of a server": (content(PLAIN, b'{"error": "Access is restricted"}'), "error of a server: 'Access is restr"),
    "JSON": (content(BIN, b'{"weight_map": {}}'), "JSON with keys weight_map"),
    "text": (content(PLAIN, b"Entry not found"), "text, 'Entry not found'"),
    "XML": (content(PLAIN, b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'), "AccessDenied"),
    "empty": (content(PLAIN, b""), "is empty (0 bytes)"),
    "zeros": (content(PLAIN, bytes(9000)), "zeros"),
    "gzip": (content(BIN, gzip.compress(b"x")), "gzip archive: unpack it"),
    "tar": (content(BIN, bytes(257) + b"ustar" + bytes(250) + b"x"), "tar archive"),
    "cut zip": (
        lambda unet: (save(BIN)(unet), (unet / BIN).write_bytes((unet / BIN).read_bytes()[:9000])),
        "cut or damaged",
    ),
    "cut safetensors": (
        lambda unet: (save(PLAIN)(unet), (unet / PLAIN).write_bytes((unet / PLAIN).read_bytes()[:-9])),
        "cut or damaged",
    ),
    "HDF5": (content(BIN, b"\x89HDF\r\n\x1a\n" + bytes(9)), "HDF5"),
    "missing shard": (
        shards("diffusion_pytorch_model-{:05}-of-{:05}.bin", missing=(1,)),
        "2 of the 3 parts of diffusion_pytorch_model",
    ),
    "missing shard of an index": (
        shards("part-{}-{}.safetensors", f"{PLAIN}.index.json", missing=(2,)),
        "part-3-3.safetensors is missing",
    ),
    "a pointer among shards": (
        all_of(
            shards("diffusion_pytorch_model-{:05}-of-{:05}.bin", "diffusion_pytorch_model.bin.index.json"),
            content("diffusion_pytorch_model-00002-of-00003.bin", POINTER),
        ),
        "diffusion_pytorch_model-00002-of-00003.bin is a pointer",
    ),
    "link to nowhere": (lambda unet: (unet / PLAIN).symlink_to("blob"), "a link to nowhere"),
    "two variants": (
        all_of(save("diffusion_pytorch_model.a.safetensors"), save("diffusion_pytorch_model.b.safetensors")),
        "variants a, b",
    ),
    "two files": (all_of(save("a.safetensors"), save("b.safetensors")), "several files of weights"),
    "two networks": (
        save(PLAIN, prefixed("student.") | prefixed("teacher.")),
        "several networks, under 'student.', 't",
    ),
    "two averages": (save(BIN, {"ema_0.9": EMA, "ema_0.99": EMA}), "several networks"),
    "optimizer": (save(BIN, {"state": {0: TENSORS}, "param_groups": [{"lr": 1e-4}]}), "state of an optimizer"),
    "average without names": (save(BIN, {"decay": 0.9, "shadow_params": [*TENSORS.values()]}), "ema.copy_to"),
    "whole module": (save(BIN, Namespace()), "Namespace: where its code is"),
    "numbers": (save(BIN, {"epoch": 3, "loss": 0.5, "args": Namespace()}), "epoch (int), loss (float), args (tests."),
    "unknown beside a prefix": (save(PLAIN, prefixed("model.") | {"betas": np.ones(9)}), "unknown: betas [9]"),
    "a damaged average": (
        all_of(save(PLAIN), folder_of("unet_ema", EMA), content("../unet_ema/" + PLAIN, HTML)),
        "HTML",
    ),
    "another network": (
        save(PLAIN, {"init_conv.weight": np.ones(2), "a": np.ones(1)}),
        "none is right (it has a, init_conv.weight)",
    ),
    "accelerate's": (
        lambda unet: ((unet / "config.json").unlink(), content("../random_states_0.pkl", b"x")(unet)),
        "accelerate's checkpoint",
    ),
    "a run of checkpoints": (
        lambda unet: ((unet / "config.json").unlink(), [(unet / f"../checkpoint-{n}").mkdir() for n in (500, 1000)]),
        "checkpoint-1000",
    ),
    "config a page": (all_of(save(PLAIN), content("config.json", HTML)), "config.json is a web page"),
    "config empty": (all_of(save(PLAIN), content("config.json", b"")), "config.json is empty"),
    "scheduler a pointer": (all_of(save(PLAIN), content("../scheduler/scheduler_config.json", POINTER)), "Git LFS"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_network_is_called_by_its_name(case, model, tmp_path, capsys):
    make, said = REFUSED[case]
    make(model / "unet")
    assert main(["convert", str(model), str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def scheduler(model, **changes):
    """Rewrites scheduler_config.json; ... takes a field out. Returns the folder."""
    path = model / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return model


def below(model, *names):
    """Moves the network into folders below the pipeline's: checkpoint-N/unet."""
    target = model.joinpath(*names)
    target.parent.mkdir(parents=True, exist_ok=True)
    (model / "unet").rename(target)
    return target


def index(model, kind):
    (model / "model_index.json").write_text(json.dumps({"scheduler": ["diffusers", kind]}))
    return model


PROCESS = {  # (what is done to the folder, what is converted) -> prediction, schedule, note
    "whole": (lambda m: m, "x_0", "cosine", ""),
    "its unet": (lambda m: m / "unet", "x_0", "cosine", "the process is that of"),
    "checkpoint": (lambda m: below(m, "checkpoint-5", "unet").parent, "x_0", "cosine", "the process is that of"),
    "unet of a checkpoint": (lambda m: below(m, "checkpoint-5", "unet"), "x_0", "cosine", "the process is that of"),
    "none": (lambda m: (shutil.rmtree(m / "scheduler"), m)[1], "noise", "linear", "assumed as DDPM, betas linear"),
    "no prediction": (
        lambda m: scheduler(m, prediction_type=...),
        "noise",
        "cosine",
        "prediction_type=epsilon",
    ),
    "no betas": (lambda m: scheduler(m, beta_schedule=...), "x_0", "linear", "beta_schedule=linear"),
    "predict_epsilon": (
        lambda m: scheduler(m, prediction_type=..., predict_epsilon=False),
        "x_0",
        "cosine",
        "",
    ),
    "of 2022": (
        lambda m: (scheduler(m, prediction_type=..., predict_epsilon=True, num_train_timesteps=..., timesteps=1000), m)[
            1
        ],
        "noise",
        "cosine",
        "",
    ),
    "class of the index": (
        lambda m: index(m, "DDIMScheduler"),
        "x_0",
        "cosine",
        "scheduler DDIMScheduler, as model_index.json",
    ),
    "class in the index only": (
        lambda m: scheduler(index(m, "DDIMScheduler"), _class_name=...),
        "x_0",
        "cosine",
        "",
    ),
}


@pytest.mark.parametrize("case", PROCESS)
def test_process_is_the_networks_or_said_to_be_assumed(case, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Checkpoints, "save", lambda *args, **options: None)  # most of the time, and not what is asked
    make, prediction, schedule, said = PROCESS[case]
    save(PLAIN)(model / "unet")
    scheduler(model, beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    assert main(["convert", str(make(model)), str(tmp_path / "run")]) == 0
    diffusion, out = read_run(tmp_path / "run").diffusion, capsys.readouterr().out
    assert (diffusion.prediction, diffusion.schedule) == (prediction, schedule)
    assert said in out and any(
        f"{word} " in out for word in ("process is", "assumed, as", "assumed as", "scheduler")
    ) == bool(said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"predict_epsilon": False, "prediction_type": "epsilon"},
            "predict_epsilon=False and prediction_type='epsilon'",
        ),
        ({"predict_epsilon": "no", "prediction_type": ...}, "prediction_type='no'"),
        ({"prediction_type": None}, "prediction_type=None"),
        ({"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2"}, "num_train_timesteps=500 (only 1000)"),
        ({"rescale_betas_zero_snr": True}, "divides by 0"),
        ({"trained_betas": [0.1, 0.2], "num_train_timesteps": 2}, "2"),
        ({"_class_name": ...}, "has no _class_name"),
        ({"_class_name": "HeunDiscreteScheduler"}, "HeunDiscreteScheduler"),
    ],
)
def test_process_that_is_not_clear_is_refused(changes, said, model, tmp_path, capsys):
    save(PLAIN)(model / "unet")
    scheduler(model, **changes)
    assert main(["convert", str(model), str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_network_of_a_hubs_cache(model, tmp_path):
    save(PLAIN)(model / "unet")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    model.rename(snapshot)
    scheduler(snapshot, prediction_type="sample")
    assert main(["convert", str(tmp_path / "models--a--b"), str(tmp_path / "run")]) == 0
    assert read_run(tmp_path / "run").diffusion.prediction == "x_0"


PROJECT = "guided-diffusion"
FLAGS, SHAPES = flags_of(PROJECT)
OPENAI = {name: weight(name, shape) for name, shape in SHAPES.items()}


def openai_file(path, **changes):
    torch_save(path, OPENAI | changes)
    return path


def classes(count):
    return weight("label_emb.weight", (count, len(OPENAI["time_embed.2.bias"])))


def test_openai_classes_are_the_files(tmp_path):
    """NUM_CLASSES of a fork; --null-class; and flags that say nothing of classes or of the variance."""
    path = openai_file(tmp_path / "x.pt", **{"label_emb.weight": classes(10)})
    flags = {name: value for name, value in FLAGS.items() if name not in ("class_cond", "learn_sigma")}
    found = read_openai(path, flags, project=PROJECT)
    assert found.fields["num_classes"] == 10 and any("classes 0..9" in note for note in found.notes)
    assert sum("the flags do not say so" in note for note in found.notes) == 2
    table = found.params["embedding"]["classes"]["embedding"]
    assert table.shape[0] == 11 and not table[10].any()
    last = read_openai(path, FLAGS | {"class_cond": True}, project=PROJECT, null_class=True)
    assert last.fields["num_classes"] == 9 and last.params["embedding"]["classes"]["embedding"][9].any()
    with pytest.raises(UserError, match=r"unknown: label_emb\.weight \[10"):
        read_openai(path, FLAGS | {"class_cond": False}, project=PROJECT)


def test_openai_process_that_no_flag_says_is_said(tmp_path):
    found = read_openai(openai_file(tmp_path / "x.pt"), FLAGS | {"noise_schedule": "cosine"}, project=PROJECT)
    (note,) = (note for note in found.notes if "assumed" in note)
    assert "--predict_xstart False" in note and "noise_schedule" not in note


def test_openai_average_is_preferred(tmp_path):
    for name in (
        "model000010.pt",
        "ema_0.999_000010.pt",
        "ema_0.9999_000010.pt",
        "ema_0.9999_000002.pt",
        "opt000010.pt",
    ):
        openai_file(tmp_path / name)
    found = read_openai(tmp_path, FLAGS, project=PROJECT)
    assert "averaged weights: ema_0.9999_000010.pt" in found.notes
    found = read_openai(tmp_path / "model000010.pt", FLAGS, project=PROJECT)
    assert any(note.startswith("raw weights") and "ema_0.9999_000010.pt" in note for note in found.notes)


def test_openai_checkpoints_of_trainers(tmp_path):
    """DiT's {"model", "ema", "opt", "args"}, and Lightning's: the weights of the average, or of the only network."""
    averaged = {name: value + 1 for name, value in OPENAI.items()}
    optimizer = {"state": {0: {"exp_avg": np.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch_save(tmp_path / "dit.pt", {"model": OPENAI, "ema": averaged, "opt": optimizer, "args": Namespace()})
    lightning = {"state_dict": prefixed("model.", OPENAI), "optimizer_states": [optimizer], "epoch": 3, "callbacks": {}}
    torch_save(tmp_path / "last.ckpt", lightning)
    raw = read_openai(openai_file(tmp_path / "x.pt"), FLAGS, project=PROJECT)
    for name, difference in (("dit.pt", 1), ("last.ckpt", 0)):
        found = read_openai(tmp_path / name, FLAGS, project=PROJECT)
        shift = found.params["conv_in"]["bias"] - raw.params["conv_in"]["bias"]
        np.testing.assert_allclose(shift, difference, atol=1e-6)
        assert any("averaged" in note for note in found.notes) == bool(difference)


def test_a_file_alone_says_what_is_needed(tmp_path, capsys):
    openai_file(tmp_path / "x.pt")
    torch_save(tmp_path / "theirs.pt", {"ema": TENSORS})
    (tmp_path / "model.ckpt-790000.index").write_bytes(b"\0\1\2")
    (tmp_path / "page.pt").write_bytes(HTML)
    for name, said in (
        ("x.pt", "says nothing of its network: add --project"),
        ("theirs.pt", "is a network of diffusers: give the folder"),
        ("model.ckpt-790000.index", "a part of a checkpoint of TensorFlow"),
        ("page.pt", "web page"),
    ):
        assert main(["convert", str(tmp_path / name), str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err


def test_archives_that_are_no_weights(tmp_path):
    for name, members, said in (
        ("a.pt", ["archive/data.pkl", "archive/constants.pkl"], "TorchScript"),
        ("b.pt", ["a.npy"], "NumPy"),
        (
            "c.safetensors",
            ["model.safetensors", "config.json"],
            "ZIP archive of model.safetensors, config.json",
        ),
    ):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, b"x")
        with pytest.raises(UserError, match=said):
            read_file(tmp_path / name)


def test_features_of_an_evaluation_are_no_page_either(tmp_path):
    from jaxdiff.evaluation.extractors import read_tensors

    (tmp_path / "inception.pth").write_bytes(POINTER)
    with pytest.raises(UserError, match="Git LFS"):
        read_tensors(tmp_path / "inception.pth")
    ours.write(tmp_path / "x.pth", {"a": np.ones(2, np.float32)}, {})
    assert read_tensors(tmp_path / "x.pth").keys() == {"a"}
