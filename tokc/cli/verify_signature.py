"""`tokc verify-signature`: did whom one trusts sign this artifact."""

from pathlib import Path
from typing import Annotated

import typer

from tokc.cli.console import needs_extra


def verify_signature(
    artifact: Annotated[Path, typer.Argument(help="A NAME.tokc folder.", show_default=False)],
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
