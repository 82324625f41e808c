"""What weights have left goes back to the system, and what is in use stays as it is."""

import sys
from pathlib import Path

import pytest
import torch

from srrc.bench.memory import resident
from srrc.runtime.release import release

MEGABYTES = 1 << 20

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="Linux alone tells what is resident"
)


def test_pages_of_a_mapped_file_go_and_keep_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (64 * MEGABYTES // 256))
    mapped = torch.from_file(str(file), shared=False, size=64 * MEGABYTES, dtype=torch.uint8)
    mapped[5] = 77
    expected = int(mapped.sum(dtype=torch.int64))
    before = resident()
    release([(mapped.data_ptr(), mapped.data_ptr() + mapped.nbytes)])
    assert before is not None
    assert (resident() or 0) < before - 32 * MEGABYTES
    assert int(mapped.sum(dtype=torch.int64)) == expected
    assert int(mapped[5]) == 77


def test_memory_of_no_file_is_left_alone() -> None:
    tensor = torch.ones(8 * MEGABYTES)
    release([(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes), (0, 10), (4096, 8192)])
    assert bool((tensor == 1).all())
