"""Signatures: what was signed is accepted, and nothing that differs from it in any way."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from typer.testing import CliRunner

import tokc
from tests.runtime.small_artifact import flip_a_bit, write_small_artifact
from tokc.cli.app import app
from tokc.errors import ArtifactRefused, TokcError
from tokc.runtime.artifact import Artifact
from tokc.runtime.signature import require_signature, sign


def write_keys(folder: Path, name: str, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    return write_pair(folder, name, ec.generate_private_key(curve or ec.SECP256R1()))


def write_pair(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    public.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return write_small_artifact(tmp_path / "small.tokc")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "alice")


def check(artifact: Path, public: Path) -> None:
    require_signature(Artifact.open(artifact, verify=False), public)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_was_signed_is_accepted_and_still_whole(
    tmp_path: Path, artifact: Path, curve: ec.EllipticCurve
) -> None:
    private, public = write_keys(tmp_path, "key", curve)
    sign(artifact, private)
    check(artifact, public)
    Artifact.open(artifact)


def test_the_statement_names_every_file_by_the_standard(artifact: Path, keys: tuple[Path, Path]) -> None:
    bundle = json.loads(sign(artifact, keys[0]).read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert statement["predicateType"] == "https://model_signing/signature/v1.0"
    found = {str(path.relative_to(artifact)) for path in artifact.rglob("*") if path.is_file()}
    assert {row["name"] for row in statement["predicate"]["resources"]} == found - {"model.sig"}


def test_another_key_is_refused(tmp_path: Path, artifact: Path, keys: tuple[Path, Path]) -> None:
    sign(artifact, keys[0])
    with pytest.raises(ArtifactRefused, match="signed with another key"):
        check(artifact, write_keys(tmp_path, "mallory")[1])


def test_no_signature_is_refused(artifact: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ArtifactRefused, match="is not signed"):
        check(artifact, keys[1])


def test_a_manifest_that_was_changed_is_refused(artifact: Path, keys: tuple[Path, Path]) -> None:
    sign(artifact, keys[0])
    manifest = artifact / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(ArtifactRefused, match="not the one that was signed"):
        check(artifact, keys[1])


def test_a_file_that_was_changed_is_found_by_its_hash(artifact: Path, keys: tuple[Path, Path]) -> None:
    sign(artifact, keys[0])
    flip_a_bit(artifact / "kernels" / "step.so", 2)
    with pytest.raises(ArtifactRefused, match="was changed"):
        tokc.load(artifact, require_signature=keys[1])


def test_nothing_of_an_unsigned_artifact_is_loaded(artifact: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ArtifactRefused, match="is not signed"):
        tokc.load(artifact, require_signature=keys[1])


def test_any_change_of_the_statement_is_refused(artifact: Path, keys: tuple[Path, Path]) -> None:
    signature = sign(artifact, keys[0])
    bundle = json.loads(signature.read_text())
    payload = bytearray(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    for place in range(0, len(payload), 97):
        changed = bytearray(payload)
        changed[place] ^= 1
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
        signature.write_text(json.dumps(bundle))
        with pytest.raises(ArtifactRefused, match="signature is not valid"):
            check(artifact, keys[1])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"dsseEnvelope": 3}', '{"dsseEnvelope": {"payloadType": "x"}}', "[" * 100_000],
)
def test_a_signature_that_is_none_is_one_clear_error(
    artifact: Path, keys: tuple[Path, Path], text: str
) -> None:
    (artifact / "model.sig").write_text(text)
    with pytest.raises(ArtifactRefused, match="the signature cannot be read"):
        check(artifact, keys[1])


def test_a_damaged_artifact_is_not_signed(artifact: Path, keys: tuple[Path, Path]) -> None:
    flip_a_bit(artifact / "plan.json", 0)
    with pytest.raises(ArtifactRefused, match="was changed"):
        sign(artifact, keys[0])
    assert not (artifact / "model.sig").exists()


def test_keys_of_another_kind_are_refused(tmp_path: Path, artifact: Path, keys: tuple[Path, Path]) -> None:
    private, public = write_pair(tmp_path, "edward", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(TokcError, match="no key of an elliptic curve"):
        sign(artifact, private)
    sign(artifact, keys[0])
    with pytest.raises(TokcError, match="no key of an elliptic curve"):
        check(artifact, public)
    with pytest.raises(TokcError, match="no private key"):
        sign(artifact, keys[1])
    with pytest.raises(TokcError, match="secp256k1"):
        sign(artifact, write_keys(tmp_path, "coin", ec.SECP256K1())[0])


def test_the_commands_sign_and_verify(artifact: Path, keys: tuple[Path, Path]) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["sign", str(artifact), "--key", str(keys[0])]).exit_code == 0
    verify = ["verify-signature", str(artifact), "--public-key", str(keys[1])]
    assert runner.invoke(app, verify).exit_code == 0
    flip_a_bit(artifact / "model.safetensors", 100)
    assert isinstance(runner.invoke(app, verify).exception, ArtifactRefused)
