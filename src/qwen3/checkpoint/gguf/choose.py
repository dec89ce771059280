"""Which GGUF file of a repository a name such as `Qwen/Qwen3-8B-GGUF:Q4_K_M` means."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qwen3.checkpoint.gguf.files import part_names, stem
from qwen3.errors import CorruptFileError, ModelNotFoundError, UsageError

# names as hubs have them, at most one folder deep; never one that leads out of where it is put
_SAFE = re.compile(r"(?:[\w+-][\w.+-]*/)?[\w+-][\w.+-]*\.gguf", re.ASCII | re.IGNORECASE)
_NO_MODEL = ("mmproj", "imatrix")  # a vision projector, quantization statistics


def models(names: Iterable[str]) -> list[str]:
    """The models among file names: each by its first file, sorted."""
    usable = [name for name in names if _SAFE.fullmatch(name) and not any(no in name.lower() for no in _NO_MODEL)]
    return sorted({parts(name)[0] for name in usable})


def choose(repo: str, names: Iterable[str], quant: str | None) -> list[str]:
    """All files of the model that `quant` names, in order: by its quantization (`Q4_K_M`, upper or lower case), or as a
    file's name; None: the only one there is.

    Raises ModelNotFoundError where there is none of that name, UsageError where several are; both list what there is.
    """
    names = list(names)
    found = models(names)
    if not found:
        raise ModelNotFoundError(f"{repo} holds no GGUF file; perhaps {repo}-GGUF does")
    tags = ", ".join(_tags(found))
    if quant is None:
        if len(found) > 1:
            raise UsageError(f"{repo} holds {len(found)} models: {tags}; say which, as in {repo}:{_tags(found)[0]}")
        chosen = found
    else:
        chosen = _matching(found, quant)
    if not chosen:
        raise ModelNotFoundError(f"{repo} holds no model {quant}; there is {tags}")
    if len(chosen) > 1:
        listed = ", ".join(name.rpartition("/")[2] for name in chosen)
        raise UsageError(f"{repo}:{quant} may be {listed}; give the name of the file behind the colon")
    files = parts(chosen[0])
    missing = [name for name in files if name not in names]
    if missing:
        raise CorruptFileError(f"{repo}: of {len(files)} parts of {stem(chosen[0])} {missing[0]} is not there")
    return files


def _matching(found: list[str], quant: str) -> list[str]:
    """Those that are called so, else that end so, else that have it between hyphens or dots."""
    wanted = re.escape(quant.lower().removesuffix(".gguf"))
    for pattern in (wanted, rf".*[-.]{wanted}", rf".*[-.]{wanted}[-.].*"):
        chosen = [name for name in found if re.fullmatch(pattern, stem(name).lower())]
        if chosen:
            return chosen
    return []


def _tags(found: list[str]) -> list[str]:
    """What tells the models apart: their names without the beginning that all share."""
    fields = [stem(name).split("-") for name in found]
    shared = 0
    while all(len(own) > shared + 1 for own in fields) and len({own[shared] for own in fields}) == 1:
        shared += 1
    return ["-".join(own[shared:]) for own in fields]


def parts(name: str) -> list[str]:
    """Names of all files of the model that the file `name` belongs to, with their folder."""
    folder, slash, file = name.rpartition("/")
    return [folder + slash + part for part in part_names(file)]
