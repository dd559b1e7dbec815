"""Freed memory is kept for the next picture; each case in a process of its own, as the setting is the process's."""

import subprocess
import sys

import pytest

from router.heap import keep_freed

PICTURES = """
import sys
from router.heap import keep_freed
kept = keep_freed({}) if sys.argv[1] == "kept" else False
def faults():
    with open("/proc/self/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[7])
def round():
    held = [b"x" * 4_000_000 for _ in range(8)]
round()
before = faults()
for _ in range(5):
    round()
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PICTURES, how], capture_output=True, check=True, text=True)
    return int(done.stdout)


def test_pictures_that_come_and_go_use_the_same_memory() -> None:
    assert faults("kept") < 1000 < faults("as it is")  # of 40 pictures with 976 pages each


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_operator_has_set_stays(name: str) -> None:
    assert keep_freed({name: "1"}) is False
