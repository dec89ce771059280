"""What a checkpoint folder holds: its weight files, their index, its manifest. No tensor is read, no torch needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3.checkpoint.header import Header, read_header, read_json
from qwen3.errors import ConfigError, CorruptFileError, ModelNotFoundError, UnsafeFileError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MANIFEST = "qwen3.manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def is_adapter(folder: str | Path) -> bool:
    """Whether there is a LoRA adapter (see `adapter.py`) in it, or a trainer's folder has one."""
    return (adapter_folder(folder) / ADAPTER_CONFIG).is_file()


def adapter_folder(folder: str | Path) -> Path:
    """The folder itself, or the `adapter` in what a trainer left."""
    folder = Path(folder)
    inner = folder / "adapter"
    return inner if not (folder / ADAPTER_CONFIG).is_file() and (inner / ADAPTER_CONFIG).is_file() else folder


def find_weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order: `model.safetensors`, or the shards its index names.

    Raises ModelNotFoundError without any weights, UnsafeFileError when there is pickle only, CorruptFileError when the
    index and the folder disagree.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such folder")
    single, index = folder / SINGLE, folder / INDEX
    if single.exists() and index.exists():
        raise CorruptFileError(f"{folder} holds both {SINGLE} and {INDEX}; remove the one that is not the model")
    if single.exists():
        return [single]
    if index.exists():
        return [folder / name for name in dict.fromkeys(sorted(_weight_map(index).values()))]
    others = sorted(path.name for path in folder.iterdir() if path.is_file())
    named = [name for name in others if name.endswith(".safetensors") and not name.startswith((".", "adapter"))]
    if named:
        raise CorruptFileError(f"{folder} holds {named[0]} but neither {SINGLE} nor {INDEX}; download what is missing")
    unsafe = [name for name in others if name.endswith(UNSAFE_SUFFIXES)]
    if unsafe:
        raise UnsafeFileError(
            f"{folder} holds only {unsafe[0]}, a pickle that can run code and is never opened; get the model as "
            "safetensors, or convert it yourself with safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )
    gguf = next((name for name in others if name.endswith(".gguf")), None)
    if gguf is not None:
        raise ModelNotFoundError(f"{folder} holds GGUF files, no safetensors; give the file itself: {folder / gguf}")
    raise ModelNotFoundError(f"{folder}: no weights ({SINGLE} or {INDEX})")


def read_headers(folder: str | Path) -> list[Header]:
    """Checked headers of all weight files of a folder.

    Raises CorruptFileError for a tensor in two files, or where the index and the files disagree, naming all such.
    """
    headers = [read_header(file) for file in find_weight_files(folder)]
    owner: dict[str, Path] = {}
    for header in headers:
        for name in header.tensors:
            if name in owner:
                raise CorruptFileError(f"tensor {name} is in both {owner[name]} and {header.file}")
            owner[name] = header.file
    index = Path(folder) / INDEX
    if index.exists():
        listed = _weight_map(index)
        problems = [f"{name} is in {file.name} but not listed" for name, file in owner.items() if name not in listed]
        for name, file_name in listed.items():
            where = owner.get(name)
            if where is None:
                problems.append(f"{name} is listed in {file_name}, which does not hold it")
            elif where.name != file_name:
                problems.append(f"{name} is listed in {file_name} but is in {where.name}")
        if problems:
            raise CorruptFileError(f"{index} and its shards disagree: {'; '.join(problems)}")
    return headers


@dataclass(frozen=True)
class Fp8Format:
    """What `quantization_config` says of an FP8 checkpoint. `skip`: names of modules that are not quantized."""

    skip: tuple[str, ...] = ()
    block: int = 128


# the only value of each that is read; where a key is absent it is meant
_FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
    "scale_fmt": "float",
    "expert_dtype": "fp8",
    "modules_to_convert": None,
    "dequantize": False,
}


def stored_format(folder: Path) -> Fp8Format | None:
    """How `config.json` says the weights are quantized: None if they are not (or if there is no such file).

    None, too, if it is another of the formats that are read (`formats.detect`). Raises ConfigError for any that is not,
    naming the method or the key.
    """
    config = folder / "config.json"
    if not config.exists():
        return None
    data = read_json(config)
    found = data.get("quantization_config") if isinstance(data, dict) else None
    if not isinstance(found, dict) or found.get("quant_method") != "fp8":
        if found or (isinstance(data, dict) and data.get("quantization")):
            from qwen3.checkpoint.formats.detect import find_layout

            find_layout(folder)
        return None
    skip = found.get("modules_to_not_convert") or []
    for key, value in found.items():
        if key != "modules_to_not_convert" and (key not in _FP8 or value != _FP8[key]):
            wanted = f"only {_FP8[key]!r} is supported" if key in _FP8 else "which is not known"
            raise ConfigError(f"{config}: quantization_config.{key[:60]} is {str(value)[:60]!r}, {wanted}")
    if not isinstance(skip, list) or not all(isinstance(name, str) for name in skip):
        raise ConfigError(f"{config}: quantization_config.modules_to_not_convert must be a list of module names")
    return Fp8Format(tuple(skip))


def read_manifest(folder: str | Path) -> dict[str, tuple[int, str]] | None:
    """File name → (bytes, sha256) as `save_checkpoint` recorded them; None if the folder has no manifest.

    Raises CorruptFileError when the manifest is not one.
    """
    path = Path(folder) / MANIFEST
    try:
        data = read_json(path, limit=1 << 24)
    except ModelNotFoundError:
        return None
    try:
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in data["files"].items()}
    except (TypeError, KeyError, AttributeError, ValueError):
        raise CorruptFileError(f"{path}: not a manifest of this program") from None
    if not all(Path(name).name == name for name in files):
        raise CorruptFileError(f"{path}: names a file outside its folder")
    return files


def _weight_map(index: Path) -> dict[str, str]:
    data = read_json(index)
    table = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise CorruptFileError(f"{index}: weight_map must map tensor names to file names")
    for name in sorted(set(table.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CorruptFileError(f"{index}: {name!r} is not the name of a safetensors file in this folder")
        if not (index.parent / name).exists():
            raise CorruptFileError(f"{index} names the shard {name}, which is not there; download it")
    return table
