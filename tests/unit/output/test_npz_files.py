"""Arrays of .npz files that any program may have written or damaged: read, or refused in one line."""

import io
import zipfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedding.output.npz_files import BadArraysError, read_arrays


def packed(**arrays: object) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)  # type: ignore[arg-type]
    return sink.getvalue()


def zipped(content: bytes, name: str = "a.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as archive:
        archive.writestr(name, content)
    return sink.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return sink.getvalue()


def damaged_deflate() -> bytes:
    content = bytearray(zipped(header((100,)) + bytes(800), method=zipfile.ZIP_DEFLATED))
    content[60:64] = b"\xff\xff\xff\xff"
    return bytes(content)


def test_arrays_are_read_by_name() -> None:
    content = packed(a=np.eye(2), b=np.array("text"), c=np.array([1, {}], object))
    found = read_arrays(content, ("a",), ("b", "missing"))
    assert list(found) == ["a", "b"]
    assert (found["a"] == np.eye(2)).all()
    assert str(found["b"]) == "text"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "cannot be read as .npz"),
        (lambda: packed(b=np.eye(2)), "lacks 'a'"),
        (lambda: packed(a=np.array([{}], object)), "neither numbers nor texts"),
        (lambda: zipped(b"no array"), "cannot be read as .npz"),
        (lambda: zipped(header((10**13,))), "not as long as its header says"),
        (lambda: zipped(header((4,)) + bytes(31)), "not as long as its header says"),
        (damaged_deflate, "cannot be read as .npz"),
        (lambda: packed(a=np.eye(9))[:-30], "cannot be read as .npz"),
    ],
)
def test_what_holds_no_arrays_is_refused_in_one_line(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(BadArraysError) as error:
        read_arrays(make(), ("a",))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_changed_byte_gives_arrays_or_one_line(at: int, value: int) -> None:
    content = bytearray(packed(a=np.arange(20.0), b=np.array(["x", "yz"])))
    content[at % len(content)] = value
    try:
        read_arrays(bytes(content), ("a", "b"))
    except BadArraysError as error:
        assert "\n" not in str(error)  # noqa: PT017 — most changes are no error
