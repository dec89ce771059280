"""Reasoning that a client keeps for us: signed, so that it can be checked, or sealed, so that it cannot be read.

Both hold for one tenant and one key. A key of the process (the default) is gone with it: what it signed is then history
like any other, and what it sealed cannot be opened.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12


class Seal:
    """key: 32 random bytes; None: new ones."""

    def __init__(self, key: bytes | None = None) -> None:
        key = key or secrets.token_bytes(32)
        self._mac = hmac.digest(key, b"signature", "sha256")
        self._box = AESGCM(hmac.digest(key, b"box", "sha256"))

    def sign(self, text: str, tenant: str) -> str:
        """HMAC-SHA256 over tenant and text, in base64."""
        state = hmac.new(self._mac, hashlib.sha256(tenant.encode()).digest(), "sha256")
        state.update(text.encode())
        return base64.b64encode(state.digest()).decode()

    def signed(self, text: str, tenant: str, signature: str) -> bool:
        """Whether `sign` gave this signature; in constant time."""
        return hmac.compare_digest(self.sign(text, tenant).encode(), signature.encode(errors="replace"))

    def close(self, text: str, tenant: str) -> str:
        """The text encrypted and authenticated (AES-256-GCM), in base64."""
        nonce = secrets.token_bytes(_NONCE)
        return base64.b64encode(nonce + self._box.encrypt(nonce, text.encode(), tenant.encode())).decode()

    def open(self, sealed: str, tenant: str) -> str | None:
        """What `close` was given; None: it was not by this key, not for this tenant, or has been changed."""
        try:
            data = base64.b64decode(sealed.encode(errors="replace"), validate=True)
            return self._box.decrypt(data[:_NONCE], data[_NONCE:], tenant.encode()).decode()
        except (binascii.Error, ValueError, InvalidTag):
            return None
