"""Signs an artifact and checks who signed it, by OpenSSF Model Signing: any tool of that standard reads it.

`model.sig` is a Sigstore bundle with an in-toto statement of every file's sha256, the manifest's too, signed
with an ECDSA key. The manifest's own hashes then stand for the files.
Source: github.com/ossf/model-signing-spec, version 1.0; github.com/secure-systems-lab/dsse, protocol.md.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.artifact import MANIFEST, SIGNATURE, Artifact

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey

BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAX_BYTES = 1 << 24
_KEYS = "make a key with: openssl ecparam -name prime256v1 -genkey -noout -out key.pem"


def sign(path: Path, key: Path) -> Path:
    """Check an artifact, sign it with a private key (PEM, EC) and return the signature's path.

    Raises: ArtifactRefused if it is not whole; TokcError if the key is none.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    artifact = Artifact.open(path)
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise TokcError(f"'{key}' is no private key: {error}", hint=_KEYS) from error
    if not isinstance(private, EllipticCurvePrivateKey):
        raise TokcError(f"'{key}' is no key of an elliptic curve", hint=_KEYS)
    public = private.public_key()
    algorithm = _algorithm(public, key)
    payload = json.dumps(_statement(artifact), sort_keys=True).encode()
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": _hint(public)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [
                {"sig": base64.b64encode(private.sign(_encoded(payload), algorithm)).decode(), "keyid": ""}
            ],
        },
    }
    signature, aside = path / SIGNATURE, path.with_name(f".{path.name}.{SIGNATURE}")
    aside.write_text(json.dumps(bundle, indent=1) + "\n")
    aside.replace(signature)
    return signature


def require_signature(artifact: Artifact, key: Path) -> None:
    """Check that an artifact's manifest is the one that the owner of a public key (PEM, EC) signed.

    The files are as signed if they are as the manifest says.
    Raises: ArtifactRefused if it is not signed, by another key, or was changed; TokcError if the key is none.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(key.read_bytes())
    except (OSError, ValueError) as error:
        raise TokcError(f"'{key}' is no public key: {error}", hint="as in: openssl ec -pubout") from error
    if not isinstance(public, EllipticCurvePublicKey):
        raise TokcError(f"'{key}' is no key of an elliptic curve", hint=_KEYS)
    where = artifact.path / SIGNATURE
    payload, signature, hint = _read(where)
    try:
        public.verify(signature, _encoded(payload), _algorithm(public, key))
    except InvalidSignature as error:
        other = hint is not None and hint != _hint(public)
        problem = "the artifact was signed with another key" if other else "the signature is not valid"
        raise ArtifactRefused(problem, where=str(where), hint="do not trust the artifact") from error
    if _resources(payload, where) != _digests(artifact):
        raise ArtifactRefused(
            "the artifact is not the one that was signed", where=str(where), hint="do not trust the artifact"
        )


def _statement(artifact: Artifact) -> Mapping[str, object]:
    digests = sorted(_digests(artifact).items())
    whole = hashlib.sha256(b"".join(bytes.fromhex(digest) for _, digest in digests))
    return {
        "_type": STATEMENT,
        "subject": [{"name": artifact.path.name, "digest": {"sha256": whole.hexdigest()}}],
        "predicateType": PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": name, "digest": digest, "algorithm": "sha256"} for name, digest in digests
            ],
        },
    }


def _digests(artifact: Artifact) -> dict[str, str]:
    """Return the sha256 of every file by name: the manifest's own, and those that it states."""
    manifest = hashlib.sha256((artifact.path / MANIFEST).read_bytes()).hexdigest()
    return {MANIFEST: manifest} | {name: file.sha256 for name, file in artifact.manifest.files.items()}


def _read(path: Path) -> tuple[bytes, bytes, str | None]:
    """Return a bundle's payload, its signature and the hint at its key."""
    if not path.is_file():
        hint = "get it from whoever signs what you run, or sign it: tokc sign"
        raise ArtifactRefused("the artifact is not signed", where=str(path.parent), hint=hint)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError("it is too large")
        bundle = json.loads(path.read_bytes())
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD:
            raise ValueError(f"its payload is of type '{envelope['payloadType']}'")
        payload = base64.b64decode(envelope["payload"], validate=True)
        [signature] = envelope["signatures"]
        hint = bundle["verificationMaterial"].get("publicKey", {}).get("hint")
        return payload, base64.b64decode(signature["sig"], validate=True), hint
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactRefused(f"the signature cannot be read: {error}", where=str(path)) from error


def _resources(payload: bytes, where: Path) -> dict[str, str]:
    """Return the digests that were signed."""
    try:
        statement = json.loads(payload)
        if statement["predicateType"] != PREDICATE:
            raise ValueError(f"it states '{statement['predicateType']}'")
        rows = statement["predicate"]["resources"]
        return {row["name"]: row["digest"] for row in rows if row["algorithm"] == "sha256"}
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactRefused(f"the signed statement cannot be read: {error}", where=str(where)) from error


def _encoded(payload: bytes) -> bytes:
    """Return what is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _algorithm(public: "EllipticCurvePublicKey", key: Path) -> "ECDSA":
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    if public.curve.name not in CURVES:
        raise TokcError(
            f"'{key}' is of the curve '{public.curve.name}'; choose from {', '.join(CURVES)}", hint=_KEYS
        )
    by_size = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    return ECDSA(by_size[public.curve.key_size])


def _hint(public: "EllipticCurvePublicKey") -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()
