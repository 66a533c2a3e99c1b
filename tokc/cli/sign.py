"""`tokc sign` and `tokc verify-signature`: who vouches for an artifact."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra

Folder = Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)]


def sign(
    artifact: Folder,
    *,
    key: Annotated[Path, typer.Option(help="Private key, PEM, of an elliptic curve.", show_default=False)],
) -> None:
    """Check an artifact and sign it, by OpenSSF Model Signing; writes model.sig into it."""
    from tokc.runtime.signature import sign as write

    with needs_extra("sign", "sign"):
        signature = write(artifact, key)
    typer.echo(f"{signature}: signed; whoever has the public key checks it: tokc verify-signature")


def verify_signature(
    artifact: Folder,
    *,
    public_key: Annotated[Path, typer.Option(help="Public key of the signer, PEM.", show_default=False)],
) -> None:
    """Check that an artifact is whole and was signed with a key; fails if not."""
    from tokc.runtime.artifact import Artifact
    from tokc.runtime.signature import require_signature

    whole = Artifact.open(artifact, verify=False)
    with needs_extra("sign", "verify-signature"):
        require_signature(whole, public_key)
    whole.verify()
    typer.echo(f"{artifact}: {len(whole.manifest.files)} files, all as they were signed")
