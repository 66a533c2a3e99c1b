"""Where the program `tokc` begins: it needs the extra `cli`; loading artifacts from Python does not."""

import sys

CLI_PACKAGES = {"typer", "rich"}


def main() -> None:
    """Run the command line, or say which extra is missing."""
    try:
        from tokc.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name not in CLI_PACKAGES:
            raise
        print(  # noqa: T201 - nothing that prints better is installed
            f"error: the program `tokc` needs '{error.name}'\n"
            "  hint: install the extra `cli`: pip install 'tokc-compiler[cli]'; tokc.load() needs none",
            file=sys.stderr,
        )
        sys.exit(1)
    run()
