"""The pages of docs/reference/ say what the code says."""

import pytest

from docs.reference.make import FOLDER, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_the_codes(name: str) -> None:
    assert (FOLDER / name).read_text() == PAGES[name](), "run `make reference`"


def test_every_page_is_written_by_the_code() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix in {".md", ".json"}} == set(PAGES)
