"""Freed memory is handed out again without new pages from the system, unless the user has settled it otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from danlu.models import precision

PROGRAM = """
import resource, torch
from danlu.models.precision import keep_freed_memory
if keeps:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
before = faults()
for _ in range(10):
    torch.ones(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is settled")
def test_ten_tensors_of_64_mib_take_pages_of_those_before() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    by_default, ours = (int(subprocess.run([sys.executable, "-c", f"keeps = {keeps}{PROGRAM}"], env=kept, text=True,
                                           capture_output=True, check=True).stdout) for keeps in (False, True))
    assert ours < by_default / 8


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_has_settled_stands(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(precision.ctypes, "CDLL", asked.append)
    monkeypatch.setenv(name, "1")
    precision.keep_freed_memory()
    assert not asked
