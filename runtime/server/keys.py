"""API keys: a file of JSON lines that holds no key, only what tells whether one is right.

A key is `tokc-ID-SECRET`; its line has the id, the scrypt hash of the secret, and what the key may do. A key
that was found right once is known again by a hash with a secret of this process, so scrypt runs once a key.
Source: RFC 7914 (scrypt); the secret has 256 bits, so its cost matters little and guards keys made elsewhere.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tokc.errors import TokcError
from tokc.runtime.server.errors import ApiError, too_many
from tokc.runtime.server.parameters import MAX_PRIORITY

SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 14, 8, 1
MOST_N, MOST_R, MOST_P = 1 << 17, 16, 4
HASH_BYTES, SALT_BYTES, SECRET_BYTES, ID_BYTES = 32, 16, 32, 6
SPARE_BYTES = 1 << 20
MOST_AT_ONCE = 8
LONGEST_KEY = 256

_KEY = re.compile(r"tokc-([0-9a-f]{12})-([A-Za-z0-9_-]{20,128})")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")


@dataclass(frozen=True)
class Key:
    """One line of the file. Keys of one `name` share the first one's budgets, usage and cached beginnings.

    `requests_per_minute` and `tokens_per_minute` (prompt and answer) None are unlimited; `priority` is the
    best that its requests may have.
    """

    id: str
    name: str
    salt: bytes
    hash: bytes
    n: int = SCRYPT_N
    r: int = SCRYPT_R
    p: int = SCRYPT_P
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    priority: int = 0

    def fits(self, secret: str) -> bool:
        """Say whether a secret is this key's; takes as long for a wrong one."""
        return hmac.compare_digest(_scrypt(secret, self.salt, self.n, self.r, self.p), self.hash)

    def line(self) -> str:
        """Return the line of the file, without its end."""
        body: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "scrypt": {
                "n": self.n,
                "r": self.r,
                "p": self.p,
                "salt": _b64(self.salt),
                "hash": _b64(self.hash),
            },
        }
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                body[name] = getattr(self, name)
        return json.dumps({**body, "priority": self.priority} if self.priority else body)


def make_key(
    name: str,
    *,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    priority: int = 0,
) -> tuple[str, Key]:
    """Return a new key and what the file keeps of it.

    Raises: TokcError if the name is none.
    """
    if not _NAME.fullmatch(name):
        raise TokcError(f"'{name}' is no name for a key", hint="use up to 64 letters, digits and . _ @ -")
    key_id, secret = secrets.token_hex(ID_BYTES), secrets.token_urlsafe(SECRET_BYTES)
    salt = secrets.token_bytes(SALT_BYTES)
    key = Key(
        key_id,
        name,
        salt,
        _scrypt(secret, salt, SCRYPT_N, SCRYPT_R, SCRYPT_P),
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        priority=priority,
    )
    return f"tokc-{key_id}-{secret}", key


def read_keys(path: Path) -> list[Key]:
    """Return the keys of a file; empty lines and lines that begin with # are skipped.

    Raises: TokcError naming the line.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokcError(f"the file of keys cannot be read: {error}", where=str(path)) from error
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#"):
            keys.append(_key(line, f"{path}:{number}"))
    if not keys:
        raise TokcError("the file of keys has no key", where=str(path), hint="make one: tokc key NAME")
    if len({key.id for key in keys}) < len(keys):
        raise TokcError("two keys have the same id", where=str(path))
    return keys


def append_key(path: Path, key: Key) -> None:
    """Append a key's line to a file that only its owner reads.

    Raises: TokcError if it cannot be written.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            unended = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            os.write(file, ("\n" * unended + key.line() + "\n").encode())
        finally:
            os.close(file)
    except OSError as error:
        raise TokcError(f"the file of keys cannot be written: {error}", where=str(path)) from error


class KeyRing:
    """Tells whose key a request has."""

    def __init__(self, keys: Iterable[Key]) -> None:
        """Accept `keys`."""
        self._keys = {key.id: key for key in keys}
        self._pepper = secrets.token_bytes(HASH_BYTES)
        self._known: dict[str, bytes] = {}
        self._checking = 0
        self._one_at_a_time = asyncio.Lock()

    async def find(self, headers: Mapping[str, str]) -> Key:
        """Return the key of `Authorization: Bearer KEY`.

        Raises: ApiError with 401, or with 429 if too many unknown keys are being checked.
        """
        scheme, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise _unauthorized("there is no API key; send 'Authorization: Bearer KEY'", None)
        match = _KEY.fullmatch(given) if len(given) <= LONGEST_KEY else None
        key = None if match is None else self._keys.get(match[1])
        if key is None or match is None or not await self._fits(key, match[2]):
            raise _unauthorized("the API key is not valid", "invalid_api_key")
        return key

    async def _fits(self, key: Key, secret: str) -> bool:
        tag = hashlib.blake2b(secret.encode(), key=self._pepper, digest_size=HASH_BYTES).digest()
        known = self._known.get(key.id)
        if known is not None:
            return hmac.compare_digest(known, tag)
        if self._checking >= MOST_AT_ONCE:
            raise too_many("too many keys are being checked", retry_after_s=1)
        self._checking += 1
        try:
            async with self._one_at_a_time:
                fits = await asyncio.to_thread(key.fits, secret)
        finally:
            self._checking -= 1
        if fits:
            self._known[key.id] = tag
        return fits


def _unauthorized(problem: str, code: str | None) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(HTTPStatus.UNAUTHORIZED, problem, code=code, headers=headers)


def _key(line: str, where: str) -> Key:
    try:
        body = json.loads(line)
        scrypt = body["scrypt"]
        key = Key(
            id=body["id"],
            name=body["name"],
            salt=base64.b64decode(scrypt["salt"], validate=True),
            hash=base64.b64decode(scrypt["hash"], validate=True),
            n=scrypt["n"],
            r=scrypt["r"],
            p=scrypt["p"],
            requests_per_minute=body.get("requests_per_minute"),
            tokens_per_minute=body.get("tokens_per_minute"),
            priority=body.get("priority", 0),
        )
        problem = _problem(key, body.keys())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TokcError(f"this is no line of a key: {error!r}", where=where) from error
    if problem is not None:
        raise TokcError(f"the key has {problem}", where=where)
    return key


def _problem(key: Key, names: Iterable[str]) -> str | None:
    known = {"id", "name", "scrypt", "requests_per_minute", "tokens_per_minute", "priority"}
    unknown = sorted(set(names) - known)
    costs = (key.n, MOST_N), (key.r, MOST_R), (key.p, MOST_P)
    rules = (
        (f"an unknown field '{next(iter(unknown), '')}'", not unknown),
        ("an id that is no 12 hexadecimal digits", re.fullmatch("[0-9a-f]{12}", key.id)),
        ("no proper name", _NAME.fullmatch(key.name)),
        ("a hash or salt of another length", len(key.hash) == HASH_BYTES and len(key.salt) >= SALT_BYTES),
        ("scrypt parameters out of range", all(type(v) is int and 1 <= v <= most for v, most in costs)),
        ("an n of scrypt that is no power of two above 1", key.n & (key.n - 1) == 0 and key.n > 1),
        ("a limit that is no positive number", all(
            limit is None or (type(limit) is int and limit > 0)
            for limit in (key.requests_per_minute, key.tokens_per_minute)
        )),
        ("a priority out of range", type(key.priority) is int and abs(key.priority) <= MAX_PRIORITY),
    )  # fmt: skip
    return next((problem for problem, holds in rules if not holds), None)


def _scrypt(secret: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    room = 128 * r * (n + p) + SPARE_BYTES
    return hashlib.scrypt(secret.encode(), salt=salt, n=n, r=r, p=p, maxmem=room, dklen=HASH_BYTES)


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()
