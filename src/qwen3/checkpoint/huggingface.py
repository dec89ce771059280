"""Hugging Face's dialect: `huggingface_hub` knows the API, the token and the error codes; files come by `download`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qwen3.checkpoint.cache import huggingface_cache
from qwen3.checkpoint.download import Listing, RemoteFile
from qwen3.errors import ModelNotFoundError, Qwen3Error, RemoteError, UsageError


class HuggingFace:
    """Reads HF_ENDPOINT, HF_TOKEN (or the token `hf auth login` stored), HF_HUB_CACHE and HF_HOME when it is used."""

    name = "Hugging Face"
    default_revision = "main"

    def __init__(self) -> None:
        try:
            import huggingface_hub
        except ImportError:
            raise UsageError("downloading needs huggingface_hub: pip install huggingface_hub") from None
        self.lib = huggingface_hub
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")

    def cache(self) -> Path:
        return huggingface_cache()

    def headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return dict(build_hf_headers(library_name="qwen3"))

    def listing(self, repo: str, revision: str) -> Listing:
        api = self.lib.HfApi(endpoint=self.endpoint, library_name="qwen3")
        try:
            info: Any = api.model_info(repo, revision=revision, files_metadata=True, timeout=10)
        except Exception as error:
            raise self._translate(repo, revision, error) from None
        files = []
        for item in info.siblings or ():
            size = item.lfs.size if item.lfs else item.size
            if size is None:
                raise RemoteError(f"{self.endpoint} gave no size for {repo} {item.rfilename}")
            url = self.lib.hf_hub_url(repo, item.rfilename, revision=info.sha, endpoint=self.endpoint)
            sha256 = item.lfs.sha256 if item.lfs else None
            files.append(RemoteFile(item.rfilename, size, url, sha256, None if sha256 else item.blob_id))
        return Listing(str(info.sha), tuple(files))

    def _translate(self, repo: str, revision: str, error: Exception) -> Qwen3Error:
        """One line for whatever the library raised; its HTTP layer changes between versions, its own classes do not."""
        errors: Any = self.lib.errors
        if isinstance(error, errors.OfflineModeIsEnabled):
            return ModelNotFoundError(
                f"{repo}@{revision} is not in the cache, and HF_HUB_OFFLINE forbids to download it"
            )
        if isinstance(error, errors.GatedRepoError):
            return RemoteError(
                f"{repo} is gated: accept its terms at {self.endpoint}/{repo}, then set HF_TOKEN for that account"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelNotFoundError(f"{repo} has no revision {revision!r} on {self.endpoint}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return self._not_found(repo)
        if isinstance(error, errors.HFValidationError):
            return UsageError(f"{repo!r} is not a repository name")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return self.refusal(repo, status, f"HTTP {status}")
        text = " ".join(str(error).split())[:200] or type(error).__name__
        return RemoteError(
            f"{repo}: {self.endpoint} cannot be reached ({text}); check the network, or use HF_HUB_OFFLINE=1 with a "
            "model that is in the cache (`qwen3 ls`)"
        )

    def refusal(self, what: str, status: int, reason: str) -> Qwen3Error:
        if status == 401:
            return RemoteError(f"{what}: {self.endpoint} refused the token ({reason}); set HF_TOKEN to a valid one")
        if status == 403:
            return RemoteError(
                f"{what}: {self.endpoint} refused access ({reason}); set HF_TOKEN to one that may read it"
            )
        if status == 404:
            return self._not_found(what)
        if status == 429:
            return RemoteError(f"{what}: {self.endpoint} asks to wait ({reason}); try again later, or set HF_TOKEN")
        return RemoteError(f"{what}: {self.endpoint} failed ({reason}); try again later")

    def _not_found(self, what: str) -> Qwen3Error:
        token = "HF_TOKEN may not see it" if "authorization" in self.headers() else "set HF_TOKEN if it is private"
        return ModelNotFoundError(f"{what}: no such repository on {self.endpoint} ({token})")
