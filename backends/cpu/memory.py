"""Puts weights that lie in memory already on huge pages, where the system allows it (Linux 6.1 and later).

A decoding step walks over all weights: on pages of 4 KiB that is a new translation every 64 lines. On 2 MiB pages
the kernels ran 4% (float32) to 10% (bfloat16) faster here, skipping or not. The pages are collapsed where they are:
nothing is copied by us, no tensor moves, and memory in use stays what it was.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

log = logging.getLogger("srrc.build")

HUGE = 2 << 20
MADV_HUGEPAGE = 14
MADV_COLLAPSE = 25  # collapse now, rather than when the kernel gets to it
MAPS = Path("/proc/self/maps")
SWITCH = "SRRC_HUGE_PAGES"
"""Environment variable: 0 leaves the pages alone."""


def use_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Ask for huge pages under CPU tensors of any size that lie close together, as a model's weights do.

    Returns the bytes that are on huge pages now; 0 where the system has none to give, is no Linux, or `SRRC_HUGE_PAGES`
    is 0. Takes about 2 s a GB. Call it once, after the weights got their final places.
    """
    if not sys.platform.startswith("linux") or os.environ.get(SWITCH) == "0":
        return 0
    spans = [(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.device.type == "cpu" and t.nbytes]
    advise = ctypes.CDLL(None, use_errno=True).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done = 0
    for start, end in _whole_pages(spans):
        advise(start, end - start, MADV_HUGEPAGE)
        if advise(start, end - start, MADV_COLLAPSE) == 0:
            done += end - start
        else:
            log.info("no huge pages for %d MB: %s", (end - start) >> 20, os.strerror(ctypes.get_errno()))
    return done


def _whole_pages(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Stretches of whole huge pages from the first to the last of `spans` in each private, anonymous mapping."""
    for first, last in _mappings():
        inside = [(a, b) for a, b in spans if first <= a and b <= last]
        if not inside:
            continue
        start = max(min(a for a, _ in inside) // HUGE * HUGE, -(-first // HUGE) * HUGE)
        end = min(-(-max(b for _, b in inside) // HUGE) * HUGE, last // HUGE * HUGE)
        if start < end:
            yield start, end


def _mappings() -> Iterator[tuple[int, int]]:
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, rights, _, _, inode, *_ = line.split()
        if inode == "0" and rights == "rw-p":
            first, last = addresses.split("-")
            yield int(first, 16), int(last, 16)
