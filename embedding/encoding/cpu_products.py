"""Number formats whose products a CPU has instructions for, by the flags in Linux's ``/proc/cpuinfo``."""

from pathlib import Path

# One flag is enough. OpenVINO uses these instructions.
_FLAGS = {"bf16": {"avx512_bf16", "amx_bf16"}, "int8": {"avx512_vnni", "avx_vnni"}}


def lacks_products(precision: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if this machine's CPU is known to have no instructions for products in a precision.

    Args:
        precision: Value of ``--precision``.
        cpuinfo: File with a line ``flags : …``, as CPUs of Intel and AMD have it.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)
    return flags is not None and precision in _FLAGS and _FLAGS[precision].isdisjoint(flags)
