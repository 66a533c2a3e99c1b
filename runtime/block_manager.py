"""Lends the pages of the cache, and finds pages that already hold a prompt's beginning.

A page is free, in use (by one sequence or, when full, by several), or kept: full, unused, and found again by
the digest of all tokens up to its end until its place is needed (the longest unused goes first).
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as Items


def extend_digests(digests: list[bytes], tokens: Items[int], page_size: int, salt: bytes = b"") -> None:
    """Append the digest of every further full page of `tokens`; each covers all tokens to its page's end.

    Digests with different salts never meet, so that who does not know the salt finds nothing.
    """
    for page in range(len(digests), len(tokens) // page_size):
        parent = digests[-1] if digests else salt
        content = array("i", tokens[page * page_size : (page + 1) * page_size]).tobytes()
        digests.append(hashlib.blake2b(parent + content, digest_size=16).digest())


class BlockManager:
    """Counts who uses which page."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        """Start with every page free."""
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._users = [0] * num_pages
        self._digest_of: list[bytes | None] = [None] * num_pages
        self._page_of: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Return how many pages can be allocated now."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Return how many pages sequences use."""
        return self.num_pages - self.available

    def find(self, digests: Items[bytes]) -> list[int]:
        """Return the pages that hold the longest known beginning; they are not taken yet."""
        pages = []
        for digest in digests:
            page = self._page_of.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def kept_among(self, pages: Items[int]) -> int:
        """Return how many of `pages` nobody uses: taking these makes that many fewer available."""
        return sum(self._users[page] == 0 for page in pages)

    def take(self, pages: Items[int]) -> None:
        """Use pages that `find` returned."""
        for page in pages:
            if self._users[page] == 0:
                del self._kept[page]
            self._users[page] += 1

    def allocate(self) -> int:
        """Return an empty page, letting go of the longest unused kept one if none is free."""
        if self._free:
            page = self._free.pop()
        else:
            assert self._kept, "no page is available; the scheduler must look before it allocates"
            page, _ = self._kept.popitem(last=False)
            self._forget(page)
        self._users[page] = 1
        return page

    def seal(self, page: int, digest: bytes) -> None:
        """Let a full page in use be found by `digest`; of several alike the first is found."""
        assert self._users[page] > 0, f"page {page} is sealed but not in use"
        if digest not in self._page_of and self._digest_of[page] is None:
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def release(self, pages: Items[int]) -> None:
        """Stop using pages; the last of them is the first to be forgotten."""
        for page in reversed(pages):
            assert self._users[page] > 0, f"page {page} is released twice"
            self._users[page] -= 1
            if self._users[page] == 0:
                if self._digest_of[page] is None:
                    self._free.append(page)
                else:
                    self._kept[page] = None

    def _forget(self, page: int) -> None:
        digest = self._digest_of[page]
        if digest is not None:
            del self._page_of[digest]
            self._digest_of[page] = None
