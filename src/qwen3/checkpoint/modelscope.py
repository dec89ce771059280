"""ModelScope's dialect: a listing with hashes, then each file by path. Switched on with `QWEN3_HUB=modelscope`."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import urllib.error
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from qwen3 import __version__
from qwen3.checkpoint.cache import modelscope_cache
from qwen3.checkpoint.download import Listing, RemoteFile, describe_failure, open_url
from qwen3.errors import ModelNotFoundError, Qwen3Error, RemoteError

_MAX_LISTING = 32 << 20


class ModelScope:
    """Reads QWEN3_HUB_ENDPOINT or MODELSCOPE_ENDPOINT, and QWEN3_MODELSCOPE_CACHE. Public models only."""

    name = "ModelScope"
    default_revision = "master"

    def __init__(self) -> None:
        named = os.environ.get("QWEN3_HUB_ENDPOINT") or os.environ.get("MODELSCOPE_ENDPOINT") or "www.modelscope.cn"
        self.endpoint = (named if "://" in named else f"https://{named}").rstrip("/")

    def cache(self) -> Path:
        return modelscope_cache()

    def headers(self) -> dict[str, str]:
        return {"User-Agent": f"qwen3/{__version__}"}

    def listing(self, repo: str, revision: str) -> Listing:
        url = f"{self.endpoint}/api/v1/models/{repo}/repo"
        try:
            with open_url(
                f"{url}/files?{urlencode({'Revision': revision, 'Recursive': 'true'})}", self.headers()
            ) as reply:
                text = reply.read(_MAX_LISTING + 1)
        except urllib.error.HTTPError as error:
            error.close()
            raise self.refusal(f"{repo}@{revision}", error.code, describe_failure(error)) from None
        except (OSError, http.client.HTTPException) as error:
            raise RemoteError(f"{repo}: {self.endpoint} cannot be reached ({describe_failure(error)})") from None
        try:
            data: Any = json.loads(text)
            if not data.get("Success", data.get("Code") == 200):
                raise ModelNotFoundError(f"{repo}@{revision}: {self.endpoint} says {str(data.get('Message'))[:200]!r}")
            files = tuple(
                RemoteFile(
                    name=str(item["Path"]),
                    size=int(item["Size"]),
                    url=f"{url}?{urlencode({'Revision': revision, 'FilePath': item['Path']})}",
                    sha256=str(item["Sha256"]).lower() if item.get("Sha256") else None,
                )
                for item in data["Data"]["Files"]
                if item.get("Type") != "tree"
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise RemoteError(f"{repo}: {self.endpoint} sent something else than a file listing") from None
        # it names no commit: the content does, so a changed branch is another snapshot
        lines = "".join(f"{file.sha256} {file.name}\n" for file in sorted(files, key=lambda file: file.name))
        return Listing(hashlib.sha256(lines.encode()).hexdigest()[:40], files)

    def refusal(self, what: str, status: int, reason: str) -> Qwen3Error:
        if status == 404:
            return ModelNotFoundError(f"{what}: no such model or revision on {self.endpoint}")
        if status in (401, 403):
            return RemoteError(f"{what}: {self.endpoint} refused access ({reason}); only public models are supported")
        return RemoteError(f"{what}: {self.endpoint} failed ({reason}); try again later")
