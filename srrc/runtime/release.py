"""Gives memory that weights have left back to the system (Linux; elsewhere nothing is done).

A weight that gets a new layout gets a new place, and its old one goes. But what goes of a checkpoint that is mapped
from its file stays resident while any of its tensors lives; and what threads allocated while loading goes back to their
arenas, not to the system. Nothing is lost either way: what is still in use is read again.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_PAGE_OUT = 21  # MADV_PAGEOUT, Linux 5.4: unlike MADV_DONTNEED it keeps what was written to a page
_MAPS = Path("/proc/self/maps")

Span = tuple[int, int]
"""First address, and the one after the last."""


def release(spans: Iterable[Span]) -> None:
    """Let the pages of `spans` go where a file is mapped there, and trim the allocator's arenas."""
    if not sys.platform.startswith("linux"):
        return
    system = c_library()
    for start, end in _whole_pages(spans):
        system.madvise(start, end - start, _PAGE_OUT)
    if hasattr(system, "malloc_trim"):  # glibc
        system.malloc_trim(0)


def c_library() -> ctypes.CDLL:
    """The C library, with the types of `madvise`."""
    system = ctypes.CDLL(None)
    system.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return system


def _whole_pages(spans: Iterable[Span]) -> Iterator[Span]:
    files = list(_mapped_files())
    for start, end in spans:
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and any(low <= first and last <= high for low, high in files):
            yield first, last


def _mapped_files() -> Iterator[Span]:
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)
