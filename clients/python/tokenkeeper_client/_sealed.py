"""Sealed boxes (libsodium's ``crypto_box_seal``): tokens that the broker cannot read."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from .errors import BadReplyError


class ReplyKey:
    """A key pair for one request. Its secret half is nowhere but here."""

    def __init__(self) -> None:
        secret = PrivateKey.generate()
        self._box = SealedBox(secret)
        self.public = b64encode(bytes(secret.public_key)).decode()

    def open(self, sealed: str) -> object:
        """What lies in the box. Raises `BadReplyError`."""
        try:
            content: object = json.loads(self._box.decrypt(b64decode(sealed, validate=True)))
        except (CryptoError, ValueError, TypeError, RecursionError):
            raise BadReplyError("the sealed token does not open") from None
        return content


def public_key(text: str) -> PublicKey:
    """A key as ``tokenkeeper keys public`` prints it. Raises `ValueError`."""
    try:
        key = PublicKey(b64decode(text, validate=True))
    except (CryptoError, binascii.Error, ValueError, TypeError):
        raise ValueError("the public key must be 32 bytes in base64") from None
    try:
        # libsodium knows the keys of low order, and seals nothing to them.
        SealedBox(key).encrypt(b"")
    except CryptoError:
        raise ValueError("the public key is of low order: everybody could open the login") from None
    return key


def seal(key: PublicKey, content: object) -> str:
    """A box over this content, for a message."""
    return b64encode(SealedBox(key).encrypt(json.dumps(content).encode())).decode()
