"""Memory of the process's own: zeroed, on huge pages where they help."""

import mmap


def anonymous(size: int, *, huge: bool = False) -> mmap.mmap:
    """Return zeroed memory, on huge pages if wanted and to be had; untouched pages cost nothing."""
    # Shared memory, Python's default, is the kernel's shmem: without a setting of its own it gets none.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
