"""The weights of a folder or file, whichever of their formats they are in: safetensors, torch's, or Flax's msgpack.

A file's content says its format, and its name the variant: averaged ("ema"), full, half ("fp16"), raw ("non_ema").
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jaxdiff.errors import UserError
from jaxdiff.interop import flax_files, safetensors, torch_files
from jaxdiff.interop.file_kinds import what_is

DIFFUSERS = ("diffusion_pytorch_model", "diffusion_pytorch_model", "diffusion_flax_model")
TRANSFORMERS = ("model", "pytorch_model", "flax_model")  # of .safetensors, .bin and .msgpack
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_VARIANTS = ("ema", "", "fp16", "bf16", "non_ema")  # the first that is there is taken
_FORMATS = ("safetensors", "bin", "msgpack", "pt", "pth", "ckpt")
_NAME = re.compile(  # new shards are a.fp16-00001-of-00002.bin, old ones a-00001-of-00002.fp16.bin
    r"(?P<stem>[^.]+?)(?:\.(?P<variant>\w+))?(?:-(?P<part>\d{5})-of-(?P<parts>\d{5}))?(?:\.(?P<older>\w+))?"
    r"\.(?P<format>safetensors|bin|msgpack|pt|pth|ckpt)"
)
_INDEX = re.compile(
    r"(?P<stem>[^.]+)(?:\.(?P<older>\w+))?\.(?P<format>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json"
)
_NO_NETWORK = re.compile(r"optimizer|scheduler|scaler|random_states|rng_state|training_args|sampler")
_AVERAGED = re.compile(r"(?<![a-z])(ema|averaged?|swa|shadow)(?![a-z])", re.IGNORECASE)
_ONLINE = re.compile(r"(?<![a-z])online", re.IGNORECASE)  # what an average's class keeps beside it
_COUNTER = re.compile(r"(^|[./])(n_averaged|initted|step|num_updates|decay)$")
_SHADOW = re.compile(r"(.*shadow_params)/\d+")


def read_weights(folder: Path, stems: tuple[str, str, str], notes: list[str]) -> dict[str, np.ndarray]:
    """The tensors of a folder under the names that torch's classes have today; safetensors are memory-mapped.

    Full precision is preferred to half, an average to raw weights, safetensors to the other formats, and files to
    what lies in their place.

    Args:
      folder: of one network.
      stems: DIFFUSERS or TRANSFORMERS; files of another name serve where they are the only ones.
      notes: what was taken, where there was a choice; added to.

    Raises:
      UserError: none of the files is there, or the one that is is damaged.
    """
    file_names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    groups = _groups(folder, file_names)
    own = [key for key in groups if (key[2], key[0]) in [*zip(_FORMATS, stems, strict=False)]]
    if not own:
        own = [key for key in groups if not _NO_NETWORK.search(key[0])]
        if len(own) == 1:
            notes.append(f"weights of {_listed(groups[own[0]][0])}, the only ones in {folder}")
        elif own:
            files = ", ".join(_listed(groups[key][0]) for key in own)
            raise UserError(f"{folder} has several files of weights, {files}: name the right one {stems[0]}.*")
    others = sorted({variant for _, variant, _ in own} - {*_VARIANTS})
    if len(others) > 1 and len(own) == len(others):
        raise UserError(f"{folder} has the variants {', '.join(others)} of its weights: keep one of them alone")
    order = [*_VARIANTS, *others]
    problems = []
    for key in sorted(own, key=lambda key: (order.index(key[1]), _FORMATS.index(key[2]))):
        paths, missing = groups[key]
        bad = [f"{path} {what}" for path in paths if (what := what_is(path))] + missing
        if bad:
            problems.append(bad[0] + (f" (so are {len(bad) - 1} more)" if len(bad) > 1 else ""))
            continue
        notes += [f"{problem}; {_listed(paths)} is read instead" for problem in problems]
        notes += _of_variant(key[1])
        return {_modern(name): value for path in paths for name, value in read_file(path).items()}
    if problems:
        raise UserError("; ".join(problems))
    plain, torch, flax = stems
    listed = ", ".join(name if (folder / name).exists() else f"{name} (a link to nowhere)" for name in file_names[:20])
    raise UserError(
        f"{folder} has no {plain}.safetensors (or .safetensors.index.json), {torch}.bin or {flax}.msgpack; "
        f"it has {listed or 'nothing'}"
    )


def _groups(folder: Path, file_names: Iterable[str]) -> dict[tuple[str, str, str], tuple[list[Path], list[str]]]:
    """(stem, variant, format) -> its files, and a line for what is missing of them."""
    groups: dict[tuple[str, str, str], tuple[list[Path], list[str]]] = {}
    for name in file_names:
        if (m := _NAME.fullmatch(name)) and (folder / name).is_file():
            key = (m["stem"], m["variant"] or m["older"] or "", m["format"])
            paths, missing = groups.setdefault(key, ([], []))
            if m["part"] is None:
                groups[key] = [folder / name], []
                continue
            paths.append(folder / name)
            whole = len(paths) == int(m["parts"])
            missing[:] = (
                [] if whole else [f"{folder}: {len(paths)} of the {int(m['parts'])} parts of {m['stem']} are there"]
            )
    for name in file_names:
        if (m := _INDEX.fullmatch(name)) and (folder / name).is_file():
            key = (m["stem"], m["variant"] or m["older"] or "", m["format"])
            if all("-of-" in path.name for path in groups.get(key, ([], []))[0]):  # not beside a whole file
                try:
                    groups[key] = safetensors.index_files(folder / name), []
                except UserError as error:
                    groups[key] = [], [str(error)]
    return groups


def _listed(paths: list[Path]) -> str:
    return paths[0].name if len(paths) == 1 else f"{paths[0].name} to {paths[-1].name}" if paths else "an index"


def _of_variant(variant: str) -> list[str]:
    said = {
        "": [],
        "ema": ["averaged weights: the variant 'ema'"],
        "fp16": ["weights of half precision (the variant 'fp16'): those of full precision are not there"],
        "bf16": ["weights of half precision (the variant 'bf16'): those of full precision are not there"],
        "non_ema": ["raw weights (the variant 'non_ema'): the averaged ones are not there"],
    }
    return said.get(variant, [f"weights of the variant {variant!r}"])


def read_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of one file, of the format that its first bytes show.

    Raises:
      UserError: it is something else, and what; or damaged.
    """
    if what := what_is(path):
        raise UserError(f"{path} {what}")
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" or (path.suffix == ".safetensors" and head[:2] not in (b"PK", b"\x80\x02")):
        return safetensors.read(path)
    if path.suffix == ".msgpack":
        return flax_files.as_torch(flax_files.read(path))
    return torch_files.read(path)


def unwrapped(tensors: Mapping[str, np.ndarray], anchor: str, where: str, notes: list[str]) -> dict[str, np.ndarray]:
    """One network's tensors, without what DDP, torch.compile, Lightning or an average put before each name.

    Args:
      tensors: of one file or folder; those of several dicts of a file as `torch_files.read` names them.
      anchor: a name that the network has without doubt; what comes before it comes before them all.
      where: named in errors.
      notes: which of several networks was taken; added to.

    Raises:
      UserError: several networks, none of them averaged or more than one.

    >>> said = []
    >>> tensors = dict.fromkeys(("model.a.w", "model.b", "ema.a.w", "ema.b"), np.zeros(1))
    >>> list(unwrapped(tensors, "a.w", "x.pt", said)), said
    (['a.w', 'b'], ["averaged weights: those under 'ema.', not those under 'model.'"])
    """
    prefixes = [name.removesuffix(anchor) for name in tensors if re.search(rf"(^|[./]){re.escape(anchor)}$", name)]
    averaged = [prefix for prefix in prefixes if _AVERAGED.search(prefix) and not _ONLINE.search(prefix)]
    lists = sorted({m[1] for name in tensors if (m := _SHADOW.fullmatch(name))})
    if len(averaged or prefixes) > 1:
        listed = ", ".join(repr(prefix) for prefix in averaged or prefixes)
        raise UserError(f"{where} holds several networks, under {listed}: save the right one alone")
    if not prefixes and lists:
        raise UserError(
            f"{where} holds an average without names ({lists[0]}): with what wrote it, copy it into its network "
            "(ema.copy_to(network.parameters())) and save that"
        )
    if not prefixes:
        return dict(tensors)
    (prefix,) = averaged or prefixes
    kept, rest = {}, []
    for name, value in tensors.items():
        under = max((p for p in prefixes if name.startswith(p)), key=len, default=None)
        if under == prefix:
            kept[name.removeprefix(prefix)] = value
        elif under is None and name.rpartition("/")[0] == prefix.rpartition("/")[0]:
            rest.append(name)
    counters = [name for name in rest if np.size(tensors[name]) == 1 and _COUNTER.search(name)]
    unknown = {name: tensors[name] for name in rest if name not in counters}  # which `names.load` says
    if averaged or any(name.endswith("n_averaged") for name in counters):
        beside = ", ".join(repr(other) for other in prefixes if other != prefix)
        notes.append(f"averaged weights: those under {prefix!r}" + (f", not those under {beside}" if beside else ""))
        return kept | unknown
    container, slash, inside = prefix.rpartition("/")
    without_dots = {  # of CompVis's LitEma
        name: f"{container}{slash}model_ema.{(inside + name).removeprefix('model.').replace('.', '')}" for name in kept
    }
    if tensors.keys() >= set(without_dots.values()):
        notes.append(f"averaged weights: those under 'model_ema.', not those under {prefix!r}")
        kept = {name: tensors[dotless] for name, dotless in without_dots.items()}
        return kept | {name: value for name, value in unknown.items() if name not in without_dots.values()}
    for path in lists:
        values = [value for name, value in tensors.items() if name.startswith(f"{path}/")]
        if [np.shape(value) for value in values] == [np.shape(value) for value in kept.values()]:
            notes.append(f"averaged weights: {path}, in the order of those under {prefix!r}")
            return dict(zip(kept, values, strict=True)) | unknown
        notes.append(f"raw weights: the average {path} has no names, and other shapes in another order")
    if slash and not lists:
        notes.append(f"weights under {prefix!r}: no averaged ones are beside them")
    return kept | unknown


def _modern(name: str) -> str:
    """A tensor's name as it is today: until 2023 attention had query, key, value and proj_attn."""
    return re.sub(r"(attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)", lambda m: m[1] + _OLD_ATTENTION[m[2]], name)
