"""Weights that are the process's own move to huge pages and keep their values; what is not stays as it is."""

import os
import platform
import re
import sys
from pathlib import Path

import pytest
import torch

from srrc.runtime import huge_pages
from srrc.runtime.huge_pages import use_huge_pages

MEGABYTES = 1 << 20


def _can_collapse() -> bool:
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    return (
        sys.platform.startswith("linux")
        and release is not None
        and tuple(map(int, release.groups())) >= (6, 1)
        and huge_pages._size() > 0
    )


needs_huge_pages = pytest.mark.skipif(
    not _can_collapse(), reason="needs Linux 6.1 with transparent huge pages"
)


def _on_huge_pages() -> int:
    """Bytes of this process's own memory that are."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
    assert found is not None
    return int(found[1]) << 10


@needs_huge_pages
def test_weights_move_and_keep_their_place_and_values() -> None:
    # Many that are each smaller than a huge page, as a model's are.
    block = torch.arange(16 * MEGABYTES, dtype=torch.int32)
    weights = [torch.frombuffer(part.numpy(), dtype=torch.int32) for part in block.split(100_000)]
    places, before = [w.data_ptr() for w in weights], _on_huge_pages()
    done = use_huge_pages(weights)
    assert done >= 56 * MEGABYTES
    assert _on_huge_pages() >= before + 56 * MEGABYTES
    assert [w.data_ptr() for w in weights] == places
    assert torch.equal(block, torch.arange(16 * MEGABYTES, dtype=torch.int32))


@needs_huge_pages
def test_little_of_a_page_moves_nothing() -> None:
    assert use_huge_pages([torch.ones(1000) for _ in range(5)]) == 0


@needs_huge_pages
def test_it_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_SECONDS", 0.0)
    assert use_huge_pages([torch.ones(16 * MEGABYTES, dtype=torch.uint8)]) == 0


@needs_huge_pages
def test_what_is_mapped_from_a_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (16 * MEGABYTES // 256))
    mapped = torch.from_file(str(file), shared=False, size=16 * MEGABYTES, dtype=torch.uint8)
    expected = int(mapped.sum(dtype=torch.int64))
    assert use_huge_pages([mapped]) == 0
    assert int(mapped.sum(dtype=torch.int64)) == expected


@needs_huge_pages
def test_shared_memory_stays() -> None:
    shared = torch.ones(16 * MEGABYTES, dtype=torch.uint8).share_memory_()
    assert use_huge_pages([shared]) == 0


@needs_huge_pages
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_what_a_fork_shares_stays_shared() -> None:
    weight = torch.ones(16 * MEGABYTES, dtype=torch.uint8)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = min(use_huge_pages([weight]), 1)
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert use_huge_pages([weight]) >= 12 * MEGABYTES


def test_nothing_where_the_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(8 * MEGABYTES)
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    assert use_huge_pages([weight]) == 0
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    assert use_huge_pages([weight]) == 0
