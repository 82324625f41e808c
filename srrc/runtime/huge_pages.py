"""Puts weights on huge pages, in place (Linux; elsewhere nothing is done).

Every token walks through all of the weights, whose small pages are more than the TLB holds: on a virtual machine, where
a miss costs two walks, and most of all where rows are skipped, so that fewer bytes of a page are read. Addresses and
values stay what they are.
"""

import ctypes
import logging
import mmap
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from time import perf_counter

from torch import Tensor

from srrc.runtime.release import c_library

log = logging.getLogger("srrc.cache")

_COLLAPSE = 25
"""MADV_COLLAPSE, Linux 6.1; before that the kernel's daemon comes by some time after MADV_HUGEPAGE."""
_SECONDS = 2.0
"""That moving may take: a page of 2 MB takes 2 to 4 ms. What is left is left to that daemon."""
_EXCLUSIVE = 1 << 56
"""Of an entry of /proc/self/pagemap: no other process maps the page. A fork's weights stay shared."""
_OF_A_FILE = 1 << 61
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_PAGES = Path("/proc/self/pagemap")


def use_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Move the memory of `tensors` to huge pages where most of such a page is theirs. Returns how many bytes it now is.

    What is mapped from a file, or shared with another process, stays. Nothing is done where the system's setting is
    "never", and what cannot be done is left.
    """
    size = _size()
    if size == 0:
        return 0
    system = c_library()
    covered: Counter[int] = Counter()
    here = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    storages = {storage.data_ptr(): storage.nbytes() for storage in here}
    for start, length in storages.items():
        for page in range(start // size, -(-(start + length) // size)):
            covered[page] += min(start + length, (page + 1) * size) - max(start, page * size)
    done, until = 0, perf_counter() + _SECONDS
    for page in (page for page, of_it in covered.items() if 2 * of_it >= size):
        done += _collapse(system, page * size, size, now=perf_counter() < until)
    log.info("%d of %d MB are on huge pages", done >> 20, sum(storages.values()) >> 20)
    return done


def _collapse(system: ctypes.CDLL, start: int, size: int, *, now: bool) -> int:
    """The bytes from `start` that are on a huge page now: `size` or none."""
    if not _own(start):
        return 0
    system.madvise(start, size, mmap.MADV_HUGEPAGE)
    return size if now and system.madvise(start, size, _COLLAPSE) == 0 else 0


def _own(address: int) -> bool:
    """Whether the page there is this process's alone, and of no file."""
    with _PAGES.open("rb") as pages:
        pages.seek(address // mmap.PAGESIZE * 8)
        entry = int.from_bytes(pages.read(8), sys.byteorder)
    return bool(entry & _EXCLUSIVE) and not entry & _OF_A_FILE


def _size() -> int:
    """Bytes of a huge page; 0 where there are none to be had."""
    try:
        if not sys.platform.startswith("linux") or "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        _PAGES.open("rb").close()
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0
