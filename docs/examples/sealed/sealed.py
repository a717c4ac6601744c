#!/usr/bin/env python3
"""Sealed replies and logins in Python, with PyNaCl (pip install pynacl).

  sealed.py keypair                           a key pair, as JSON
  SECRET_KEY=… sealed.py open USER HOST       the token of the token.reply on standard input
  PUBLIC_KEY=… sealed.py seal                 the token.store on standard input, sealed
"""

import json
import os
import sys
from base64 import b64decode, b64encode

from nacl.public import PrivateKey, PublicKey, SealedBox


def keypair():
    secret_key = PrivateKey.generate()
    return {
        "secret_key": b64encode(bytes(secret_key)).decode(),
        # The field reply_public_key of a token.request or a workspace.start.
        "public_key": b64encode(bytes(secret_key.public_key)).decode(),
    }


def open_token(secret_key, reply, user_id, host):
    box = SealedBox(PrivateKey(b64decode(secret_key)))
    token = json.loads(box.decrypt(b64decode(reply["token"]["sealed"])))
    # Compare with what you asked for. The reply itself may have been exchanged on its way.
    if (token["user_id"], token["host"]) != (user_id, host):
        raise ValueError("the token is of another user or host")
    return token["value"]


def seal_login(public_key, login):
    box = SealedBox(PublicKey(b64decode(public_key)))
    sealed = box.encrypt(json.dumps(login).encode())
    return {"user_id": login["user_id"], "host": login["host"], "sealed": b64encode(sealed).decode()}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["keypair"]:
            print(json.dumps(keypair()))
        case ["open", user_id, host]:
            print(open_token(os.environ["SECRET_KEY"], json.load(sys.stdin), user_id, host))
        case ["seal"]:
            print(json.dumps(seal_login(os.environ["PUBLIC_KEY"], json.load(sys.stdin))))
        case _:
            sys.exit(__doc__)
