from collections.abc import Iterator

import pytest

from tokc.heads import prompts


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """Make prompts of a few modules of the library only, and train in f32, whatever the machine."""
    few = [path for path in sorted(prompts._library().glob("*.py")) if path.stem < "d"]
    prompts._sources.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokc.heads.train._has_bf16", lambda: False)
        patch.setattr(prompts, "_modules", lambda: few)
        yield
    prompts._sources.cache_clear()
