# SPDX-License-Identifier: Apache-2.0
"""Memory between two pages that nobody may touch: one element beside a tensor and the process dies with SIGSEGV."""

import ctypes
import mmap

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def guarded_address(size: int, *, at_end: bool) -> int:
    """Address of `size` bytes that end (or begin) at a forbidden page. They are never given back."""
    page = mmap.PAGESIZE
    whole = -(-size // page) * page
    base = _LIBC.mmap(None, whole + 2 * page, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if base is None or _LIBC.mprotect(base + page, whole, mmap.PROT_READ | mmap.PROT_WRITE):
        raise OSError(ctypes.get_errno(), "mmap")
    return base + page + (whole - size if at_end else 0)


if __name__ == "__main__":
    # the proof that it works: this read must kill the process
    address = guarded_address(100, at_end=True)
    ctypes.string_at(address, 100)
    print("inside", flush=True)
    ctypes.string_at(address, 101)
    print("outside", flush=True)
