"""Tokens for one job, or for the jobs of one VM: made by whoever has the key, and checked without any state.

Problem. A page of a customer shows one bar. It must not get a token that reads every log, and the daemon must not be
asked for each page: the GUI's backend knows who may see which job, often before the job exists.

Model. The backend and the daemon share a key. A token is a JSON Web Token (RFC 7519) signed with HMAC-SHA256 (`HS256`),
so every language has a library that makes one. Its claims are those of `Claims` and no others: a claim that this
version does not know might be a restriction. `createJobToken` of the npm package makes the same bytes
(tests/data/job_tokens.json).

An ID means what it means elsewhere: the token is for the job that the ID names when it is used, exactly as written.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from typing import Final, Literal

import msgspec
from msgspec import Struct

from correlator.model.document import MAX_ID

VALID_FOR: Final = 900
"""Seconds for which a token is valid by default."""

MIN_KEY: Final = 32
"""Least characters of a key. Its bytes are those of its text."""

MAX_SIZE: Final = 4096
"""Bytes of a token. An ID has at most 255 characters of at most four bytes."""

AHEAD: Final = 60
"""Seconds that the clock of the backend may be ahead of the daemon's."""

_HEADER: Final = {"alg": "HS256", "typ": "JWT"}


class Claims(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token says.

    `v`: the version of these claims. `job`: any ID of a job; or `vm`: the name of a VM, whose jobs it is for. `aud`:
    the appliance (`cluster.instance`), if the token is for just one. `iat`, `exp`: Unix seconds of its making and end.
    """

    v: Literal[1]
    iat: int
    exp: int
    job: str = ""
    vm: str = ""
    aud: str = ""


class _Header(Struct, frozen=True, forbid_unknown_fields=True):
    alg: Literal["HS256"]
    typ: Literal["JWT"] = "JWT"
    kid: str = ""


class WrongSignature(Exception):
    """A token was not signed with the key."""


class WrongClaims(Exception):
    """A token was signed with the key, but is not one that can be accepted."""


class Ended(Exception):
    """A token has ended."""


def create(
    key: str,
    *,
    now: float,
    job: str = "",
    vm: str = "",
    valid_for: float = VALID_FOR,
    instance: str = "",
) -> str:
    """Return a token for a job, by any of its IDs, or for the jobs of a VM.

    `now`: Unix seconds. `valid_for`: seconds. `instance`: the appliance, if the token is for just one.

    Raises: ValueError with what is wrong.
    """
    if len(key) < MIN_KEY:
        raise ValueError(f"the key has fewer than {MIN_KEY} characters: make one with openssl rand -base64 48")
    if bool(job) == bool(vm):
        raise ValueError("give either a job or a VM")
    if len(job or vm) > MAX_ID:
        raise ValueError(f"the ID has more than {MAX_ID} characters")
    if valid_for < 1:
        raise ValueError("the token has to be valid for at least 1 s")
    made = int(now)
    claims: dict[str, object] = {
        "v": 1,
        **({"job": job} if job else {"vm": vm}),
        **({"aud": instance} if instance else {}),
    }
    claims |= {"iat": made, "exp": made + int(valid_for)}
    try:
        signed = f"{_encoded(_HEADER)}.{_encoded(claims)}"
    except UnicodeEncodeError:
        raise ValueError("the ID is no text in Unicode") from None
    return f"{signed}.{_signature(key, signed)}"


def verify(token: str, key: str, *, now: float, longest: float) -> Claims:
    """Return the claims of a token that a key has signed.

    `now`: Unix seconds. `longest`: seconds for which a token may be valid at all.

    Raises: `WrongSignature`, `WrongClaims`, `Ended`.
    """
    signed, _, signature = token.rpartition(".")
    if len(token) > MAX_SIZE or not token.isascii() or signed.count(".") != 1:
        raise WrongSignature
    if not hmac.compare_digest(_signature(key, signed), signature):  # as text: it has one spelling
        raise WrongSignature
    header, payload = signed.split(".")
    try:
        msgspec.json.decode(_decoded(header), type=_Header)
        claims = msgspec.json.decode(_decoded(payload), type=Claims)
    except (msgspec.MsgspecError, binascii.Error, UnicodeError) as error:
        raise WrongClaims(f"it has to be a JWT with HS256 and the claims v, job or vm, iat and exp: {error}") from error
    if bool(claims.job) == bool(claims.vm) or len(claims.job or claims.vm) > MAX_ID:
        raise WrongClaims(f"it has to name either a job or a vm, with at most {MAX_ID} characters")
    if not 0 < claims.exp - claims.iat <= longest:
        raise WrongClaims(f"it has to end (exp) after it was made (iat), and at most {longest:g} s later")
    if claims.iat > now + AHEAD:
        raise WrongClaims("it was made in the future (iat): compare the clocks")
    if claims.exp <= now:
        raise Ended
    return claims


def looks_like_one(token: str) -> bool:
    """True if a text may be such a token, whoever signed it."""
    return token.startswith("eyJ") and token.count(".") == 2


def _signature(key: str, signed: str) -> str:
    return _base64(hmac.digest(key.encode(), signed.encode(), "sha256"))


def _encoded(value: dict[str, object] | dict[str, str]) -> str:
    return _base64(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
