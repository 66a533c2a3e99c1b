"""tokc: a compiler whose objective is the cost of a token."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokc.api import compile as compile
    from tokc.api import load as load

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load"]


def __getattr__(name: str) -> object:
    """Import `compile` and `load` on first use, so that `import tokc` stays cheap."""
    if name in {"compile", "load"}:
        from tokc import api

        return getattr(api, name)
    raise AttributeError(f"module 'tokc' has no attribute {name!r}")
