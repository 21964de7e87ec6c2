"""Builds `allocator._pool`, the C side of this package, as a cffi API-mode module.

Rule: a declaration is written once, in its header. What cffi must know of it is read from there,
between the cffi marks; headers are listed with those first that others build upon.
"""

from pathlib import Path

from cffi import FFI

HEADERS = ("memory_allocator.h", "history.h", "series.h", "ledger.h")
SOURCES = ("memory_allocator.c", "history.c", "series.c", "ledger.c")
INTERNAL_HEADERS = (
    "pool_blocks.h",
    "pool_check.h",
    "pool_lists.h",
    "pool_seals.h",
    "pool_state.h",
)

BEGIN = "/* cffi: begin */"
END = "/* cffi: end */"

# `__file__` is given both by the import system and by setuptools' cffi_modules.
HERE = Path(__file__).resolve().parent


def declarations(header: str) -> str:
    """Return what stands between the marks of the header, which must have one pair."""
    text = (HERE / header).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{header}: one {BEGIN!r} and one {END!r} expected")
    return text.split(BEGIN)[1].split(END)[0]


ffibuilder = FFI()
for name in HEADERS:
    ffibuilder.cdef(declarations(name))
ffibuilder.set_source(
    "allocator._pool",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    # setuptools wants paths relative to setup.py, which is where it runs
    sources=[f"allocator/{name}" for name in SOURCES],
    depends=[f"allocator/{name}" for name in HEADERS + INTERNAL_HEADERS],
    include_dirs=["allocator"],
    # Python's own flags switch assertions off, and ours are part of the product
    extra_compile_args=["-O2", "-std=c11", "-UNDEBUG"],
    libraries=["pthread", "m"],
)
