"""``reference.npz``: arrays of numbers are read, and nothing else; nothing is unpickled."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from bundles import peak_memory, require_one_sentence, with_manifest, write_folder, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from druse import InputError
from druse.bundle import MANIFEST, REFERENCE, Bundle

FILES = bundles.cgcnn_files()
TEXT = with_manifest(FILES)[MANIFEST]


def reference(content: bytes) -> dict[str, np.ndarray]:
    return Bundle("tiny", TEXT, {REFERENCE: content}).reference()


def refuse(content: bytes, says: str = "") -> None:
    with pytest.raises(InputError, match=f"reference.npz cannot be read as arrays: .*{says}") as caught:
        reference(content)
    require_one_sentence(caught.value)


def npy(header: str, values: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin1") + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text + values


def described(shape: str, descr: str = "'<f4'", values: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    return zipped({"x.npy": npy(header, values, version)})


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ">f4", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3,), (2, 3, 4)])
def test_arrays_are_read_as_numpy_reads_them(dtype: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(np.prod(shape, dtype=int)) % 2).reshape(shape).astype(dtype)
    content = bundles.npz({"a/b": array, "c": np.asfortranarray(array)})
    with np.load(io.BytesIO(content)) as expected:
        found = reference(content)
        assert list(found) == ["a/b", "c"]
        for name, value in found.items():
            assert value.dtype == array.dtype
            np.testing.assert_array_equal(value, expected[name])


class Payload:
    """What makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_run(tmp_path: Path) -> None:
    ran, buffer = tmp_path / "ran", io.BytesIO()
    np.savez(buffer, x=np.array([Payload(ran)], dtype=object))
    content = buffer.getvalue()
    files = {**FILES, REFERENCE: content, "model.pkl": content, "conditions.parquet": content}
    opened = Bundle.open(write_folder(tmp_path / "tiny", with_manifest(files)))
    with pytest.raises(InputError, match=r"x\.npy does not hold what its header says"):
        opened.reference()
    assert not ran.exists()
    with np.load(io.BytesIO(content), allow_pickle=True) as arrays, pytest.raises(TypeError):
        _ = arrays["x"] + 1
    assert ran.exists(), "the payload would have run"


@pytest.mark.parametrize(
    "content",
    [
        described("(1,)", descr, bytes(64))
        for descr in ["'|O'", "'<c8'", "'<U4'", "'|S4'", "'<M8[ns]'", "'|V4'", "[('a', '<f4')]", "[('a', '|O')]",
                      "('<f4', (2,))", "'nonsense'", "None", "3", "'|O8'"]
    ],
)  # fmt: skip
def test_other_types(content: bytes) -> None:
    refuse(content)


@pytest.mark.parametrize(
    "shape",
    ["(1000000000, 1000000000)", "(4294967296, 4294967296)", "(18446744073709551617,)", f"(0, {10**30})", "(-1,)",
     "(-1, -1)", "(2,)", "(0,)", "[1]", "1", "'1'", "(1.0,)", f"({'1,' * 2000})", f"({'1,' * 70})"],
)  # fmt: skip
def test_shapes_that_are_not_what_is_held(shape: str) -> None:
    assert peak_memory(lambda: refuse(described(shape, values=bytes(4)))) < 2**24


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), (7, 7)])
@pytest.mark.parametrize(
    "header",
    ["", "{", "(" * 5000, "-" * 9000 + "1", "[" * 99 + "]" * 99, "__import__('os').mkdir('ran')", "{'descr': '<f4'}",
     "{'descr': '<f4', 'fortran_order': 1, 'shape': ()}", "{'shape': 10L}", "'''", " " * 60000, "\0", "é"],
    ids=lambda header: header[:20],
)  # fmt: skip
def test_headers(header: str, version: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(zipped({"x.npy": npy(header, bytes(4), version)}))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04N.", npy("{}"), FILES[REFERENCE][:-1], FILES[REFERENCE][1:], zipped({"x.npy": b""}),
     zipped({"x.npy": b"\x80\x04N."}), zipped({"x\ny.npy": b"\x93NUMPY"}), zipped({"x.npy": b"\x93NUMPY\1\0\xff\xff"}),
     zipped(FILES, zipfile.ZIP_LZMA), zipped(FILES)],
)  # fmt: skip
def test_other_content(content: bytes) -> None:
    refuse(content)


def test_names_that_would_break_the_line() -> None:
    refuse(zipped({"a\nb.npy": npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}")}), r"a\?b.npy does not hold")


@pytest.mark.parametrize("declared", [2**24, 1000])
def test_a_bomb_is_not_unpacked(declared: int) -> None:
    """16 MB of zeros, once as such, once with a small length in the archive's headers."""
    bomb = bytearray(described(f"({2**22},)", values=bytes(2**24)))
    for signature, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        place = bomb.index(signature) + at
        bomb[place : place + 4] = declared.to_bytes(4, "little")
    assert peak_memory(lambda: refuse(bytes(bomb), "64 times its size" if declared > 1000 else "CRC")) < 2**20


@settings(max_examples=200)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3),
    stored=st.booleans(),
)
def test_changed_bytes(changes: list[tuple[int, int]], stored: bool) -> None:
    """Arrays come, or the one sentence. Members that are stored as they are let headers be reached."""
    array = npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3)}", bytes(range(24)))
    content = bytearray(zipped({"x.npy": array}, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED))
    for at, mask in changes:
        content[at % len(content)] ^= mask
    try:
        found = reference(bytes(content))
    except InputError as error:
        require_one_sentence(error)
    else:
        assert all(value.dtype.kind in "fiub" for value in found.values())
