"""Memory that a program on the CPU hands back after a step, kept for the next one.

XLA takes the arrays of a CPU program from malloc and frees them at the end of every call. glibc
gives blocks of more than 32 MB back to the system at once, so that the next step faults each of
their pages in again: a fifth of the CPU time of a training. The other thing done here is to let
the system back what is kept by huge pages.
"""

import ctypes
import mmap
import sys

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = -1
# Addresses, not memory: pages come when they are written to.
_RESERVED_BYTES = 8 << 30
_HUGE_PAGE_BYTES = 2 << 20


def keep_freed_memory() -> bool:
    """Has this process keep the memory that it frees, in one heap of huge pages.

    Threads share the heap, since each heap of their own would keep what it once held. Call it at
    the start of a process that trains on the CPU, before there are threads; memory then stays at
    its peak until the process ends.

    Returns:
      Whether it is so: only with glibc, that is on most Linux systems.

    Reference: mallopt(3), madvise(2). What it brings: docs/performance.md.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    if not all(libc.mallopt(name, value) for name, value in settings):
        return False
    _ask_for_huge_pages(libc)
    return True


def _ask_for_huge_pages(libc: ctypes.CDLL) -> None:
    """Marks the addresses into which the heap will grow; without them pages stay small."""
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    reserved = libc.malloc(_RESERVED_BYTES)
    if not reserved:
        return
    first = -(-reserved // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    libc.madvise(first, reserved + _RESERVED_BYTES - first, mmap.MADV_HUGEPAGE)
    libc.free(reserved)
