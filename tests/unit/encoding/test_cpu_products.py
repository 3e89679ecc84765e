"""Number formats of CPUs, from files like ``/proc/cpuinfo``."""

from pathlib import Path

import pytest

from embedding.encoding.cpu_products import lacks_products

FLAGS = {
    "AVX2 alone": "fpu avx2 fma",
    "AVX-512 with VNNI": "fpu avx2 avx512f avx512_vnni",
    "AMX": "fpu avx512_vnni avx512_bf16 amx_bf16 amx_int8",
    "AVX-VNNI": "fpu avx2 avx_vnni",
}


@pytest.mark.parametrize(
    ("cpu", "lacking"),
    [
        ("AVX2 alone", {"bf16", "int8"}),
        ("AVX-512 with VNNI", {"bf16"}),
        ("AMX", set()),
        ("AVX-VNNI", {"bf16"}),
    ],
)
def test_formats_are_read_from_the_flags(cpu: str, lacking: set[str], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {FLAGS[cpu]}\nbugs\t\t:\n")
    assert {name for name in ("fp32", "bf16", "int8") if lacks_products(name, tmp_path / "cpuinfo")} == lacking


def test_nothing_is_claimed_about_other_machines(tmp_path: Path) -> None:
    """ARM's file has no flags, and macOS has no such file."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert not lacks_products("bf16", tmp_path / "cpuinfo")
    assert not lacks_products("bf16", tmp_path / "missing")
