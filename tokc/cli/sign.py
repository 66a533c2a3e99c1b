"""`tokc sign`: vouch for an artifact."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra


def sign(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
    *,
    key: Annotated[Path, typer.Option(help="Private key, PEM, of an elliptic curve.", show_default=False)],
) -> None:
    """Check an artifact and sign it, by OpenSSF Model Signing; writes model.sig into it."""
    from tokc.runtime.signature import sign as write

    with needs_extra("sign", "sign"):
        signature = write(artifact, key)
    typer.echo(f"{signature}: signed; whoever has the public key checks it: tokc verify-signature")
