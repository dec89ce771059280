"""Does a model fit? Asked with arithmetic before anything is allocated, so the answer is a sentence, not a kill."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from qwen3.config import ModelConfig
from qwen3.errors import OutOfMemoryError

_UNLIMITED = 1 << 60  # cgroup v1 writes 2^63 rounded down to a page when there is no limit


def required_bytes(config: ModelConfig, dtype: torch.dtype | None = None) -> int:
    """Bytes of the weights in memory at `dtype` (None: the config's own); a tied head counts once."""
    return config.num_parameters() * dtype_bytes(dtype or getattr(torch, config.dtype))


def dtype_bytes(dtype: torch.dtype) -> int:
    """Bytes of one element."""
    return torch.empty((), dtype=dtype, device="meta").element_size()


def available_bytes(device: str | torch.device | None = None) -> int | None:
    """Bytes that can still be allocated on `device` (None: the CPU); None where the system does not say.

    CPU: the least of the kernel's MemAvailable, what every memory cgroup (v1 and v2) above this process leaves, and
    what RLIMIT_AS leaves. CUDA: free memory plus what PyTorch's allocator holds unused.
    """
    device = torch.device(device or "cpu")
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    limits = [_mem_available(), *_cgroup_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")), _address_space_left()]
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) if known else None


def check_fits(
    config: ModelConfig,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    *,
    extra: int = 0,
    fp8: int = 0,
    saved: int = 0,
    name: str = "the model",
) -> None:
    """Raises OutOfMemoryError with the numbers when the weights and `extra` bytes (a KV cache, say) do not fit.

    fp8: how many of the weights are kept in one byte each. saved: bytes by which others are held in less than `dtype`.
    """
    need, free = required_bytes(config, dtype) + extra, available_bytes(device)
    need -= fp8 * (dtype_bytes(dtype or getattr(torch, config.dtype)) - 1) + saved
    if free is not None and need > free:
        dtype_name = config.dtype if dtype is None else str(dtype).removeprefix("torch.")
        dtype_name += f", {fp8:,} of them in FP8" if fp8 else ""
        cache = f" and {extra:,} bytes of working memory" if extra else ""
        raise OutOfMemoryError(
            f"{name} needs {need:,} bytes ({gigabytes(need)}: {config.num_parameters():,} weights in {dtype_name}"
            f"{cache}) but {torch.device(device or 'cpu')} has {free:,} free ({gigabytes(free)}); "
            "take a smaller model, or free some memory"
        )


def gigabytes(count: int) -> str:
    """A size for people: decimal GB or MB, as hubs print them."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _mem_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # not Linux: all of it, since nobody says what is free
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _cgroup_left(membership: Path, root: Path) -> list[int]:
    """What each memory cgroup from this process's up to the root still allows; the page cache can be reclaimed."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # v2
            base, limit_name, usage_name, cache_key = root, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):  # v1
            base, limit_name, usage_name = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache_key = "total_inactive_file"
        else:
            continue
        folder = base / group.lstrip("/")
        # in a container the group's path may be the host's: then the namespace's own root holds the limit
        for where in (folder, *folder.parents):
            found = _group_left(where, limit_name, usage_name, cache_key)
            if found is not None:
                left.append(found)
            if where == base:
                break
    return left


def _group_left(folder: Path, limit_name: str, usage_name: str, cache_key: str) -> int | None:
    try:
        limit = (folder / limit_name).read_text().strip()
        if limit == "max" or int(limit) >= _UNLIMITED:
            return None
        usage = int((folder / usage_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(limit) - usage + int(stat.get(cache_key, 0))
    except (OSError, ValueError):
        return None


def _address_space_left() -> int | None:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return limit - pages * resource.getpagesize()
    except (ImportError, OSError, ValueError):
        return None
