"""Bundles as folder and as zip: what is read back, and what is refused before anything of it is used."""

import functools
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import bundles
import pytest
from bundles import Files, peak_memory, put_zip, refuse, require_one_sentence, with_manifest, write_folder, zipped
from hypothesis import given, settings
from hypothesis import strategies as st

from druse import InputError
from druse.backends import open_backend
from druse.bundle import MANIFEST, REFERENCE, Bundle, ConCDVAEManifest
from druse.verify import verify

FILES = bundles.cgcnn_files()
WHOLE = with_manifest(FILES)
CON_CDVAE = with_manifest(FILES, bundles.con_cdvae_manifest(FILES))
Place = Callable[[Files], Path]


@pytest.fixture(params=bundles.KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Puts files where a bundle is opened from."""
    return functools.partial(bundles.put, request.param, tmp_path)


def test_reads_back(place: Place) -> None:
    opened = Bundle.open(place(WHOLE))
    assert opened.manifest == bundles.cgcnn_manifest(FILES)
    assert {name: opened.read(name) for name in FILES} == FILES
    assert len(opened.digest) == 64
    assert opened.digest[:12] in repr(opened)
    assert opened.reference()["network/inputs/frac"].shape == (3, 3)


def test_runs_and_verifies(place: Place) -> None:
    (deviation,) = verify(Bundle.open(place(WHOLE)), open_backend("ort-cpu", n_threads=1))
    assert deviation.ok
    assert deviation.alone


def test_files_may_lie_deeper(place: Place) -> None:
    files = {"priors/default/network.onnx": FILES["network.onnx"], **FILES}
    assert Bundle.open(place(with_manifest(files))).read("priors/default/network.onnx") == FILES["network.onnx"]


def test_kinds_are_told_apart(place: Place) -> None:
    opened = Bundle.open(place(CON_CDVAE))
    assert isinstance(opened.con_cdvae, ConCDVAEManifest)
    assert opened.con_cdvae == bundles.con_cdvae_manifest(FILES)
    assert set(opened.con_cdvae.networks) >= {"predictor", "priors/default/condition", "priors/default/network"}


def test_what_is_not_there_is_told(place: Place) -> None:
    opened = Bundle.open(place(WHOLE))
    with pytest.raises(InputError, match="has no file other; it has network"):
        opened.read("other")
    with pytest.raises(InputError, match="holds a property model"):
        _ = opened.con_cdvae


def test_a_written_zip_is_the_same_each_time_and_readable_when_unpacked(tmp_path: Path) -> None:
    opened = Bundle.open(write_folder(tmp_path / "tiny", WHOLE))
    first, second = tmp_path / "first.zip", tmp_path / "second.zip"
    opened.write_zip(first)
    Bundle.open(first).write_zip(second)
    assert first.read_bytes() == second.read_bytes()
    assert Bundle.open(second).digest == opened.digest
    with zipfile.ZipFile(first) as archive:
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o644}
    with pytest.raises(FileNotFoundError):
        opened.write_zip(tmp_path / "absent" / "third.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.zip", "second.zip", "tiny"]


DAMAGED = st.tuples(st.sampled_from(sorted(WHOLE)), st.integers(0, 10**6), st.integers(1, 255))


def flipped(data: bytes, at: int, mask: int) -> bytes:
    changed = bytearray(data)
    changed[at % len(data)] ^= mask
    return bytes(changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("bundles") / "tiny", WHOLE)


@settings(max_examples=200)
@given(damage=DAMAGED)
def test_a_changed_byte_in_a_folder(folder: Path, damage: tuple[str, int, int]) -> None:
    """Refused; only a manifest may still be one, and is then another."""
    name, at, mask = damage
    (folder / name).write_bytes(flipped(WHOLE[name], at, mask))
    try:
        opened = Bundle.open(folder)
    except InputError as error:
        require_one_sentence(error)
    else:
        assert name == MANIFEST
        assert opened.digest != Bundle("tiny", WHOLE[MANIFEST], {}).digest
    finally:
        (folder / name).write_bytes(WHOLE[name])


@settings(max_examples=200)
@given(at=st.integers(0, 10**6), mask=st.integers(1, 255), method=st.sampled_from([0, 8]))
def test_a_changed_byte_in_a_zip(folder: Path, at: int, mask: int, method: int) -> None:
    """Refused, unless it is one that says nothing of the content, such as a date."""
    path = folder.parent / "tiny.zip"
    path.write_bytes(flipped(zipped(WHOLE, method), at, mask))
    try:
        opened = Bundle.open(path)
    except InputError as error:
        require_one_sentence(error)
    else:
        assert {MANIFEST: opened._text, **opened._files} == WHOLE


@pytest.mark.parametrize("name", FILES)
def test_other_lengths(place: Place, name: str) -> None:
    for data in (WHOLE[name][:-1], WHOLE[name] + b"\0", b""):
        refuse(place({**WHOLE, name: data}), f"{name} is not the file that manifest.json describes")


@pytest.mark.parametrize("name", WHOLE)
def test_a_missing_file(place: Place, name: str) -> None:
    refuse(place({key: data for key, data in WHOLE.items() if key != name}), f"{name} is missing; ")


def test_a_file_that_is_not_listed(place: Place) -> None:
    refuse(place({**WHOLE, "other/model.pkl": b""}), "other/model.pkl is not listed in manifest.json; remove it")


def test_a_file_name_that_would_break_the_line(tmp_path: Path) -> None:
    refuse(write_folder(tmp_path, {**WHOLE, "a\nb\x1b[2J": b""}), r"a\?b\?\[2J is not listed")


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06", b"\x80\x04N.", b"text", zipped({})], ids=repr)
def test_no_bundle_at_all(tmp_path: Path, data: bytes) -> None:
    refuse(put_zip(tmp_path, data), "is no bundle|manifest.json is missing")
    refuse(tmp_path / "absent", "does not exist")


STRAY = ["../x", "..", ".", "", "/etc/hostname", "//x", "./x", "a//b", "a/", "a/./b", "a/../x", "a/../../x", "..\\x",
         "a\\b", "C:x", "C:/x", "x:stream", "x\0y", "x\ny", "x\x1b[2J", "x" * 241, "é" * 121, "\u202ex"]  # fmt: skip


@pytest.mark.parametrize("path", [*STRAY, MANIFEST], ids=ascii)
def test_a_listed_path_that_leaves_or_is_malformed(place: Place, path: str) -> None:
    files = with_manifest({**FILES, path: b""})
    refuse(place({name: files[name] for name in WHOLE}), "the path '.*' in manifest.json leaves the bundle")


@pytest.mark.parametrize("path", [path for path in STRAY if path != "a/" and "\0" not in path], ids=ascii)
def test_a_member_of_a_zip_that_leaves_or_is_malformed(tmp_path: Path, path: str) -> None:
    refuse(put_zip(tmp_path, zipped({**WHOLE, path: b""})), "the path '.*' in the archive leaves it or is malformed")


@pytest.mark.parametrize("root", ["../", "/", "./", "a\\", "a/b/"])
def test_a_zip_under_a_root_that_leaves_or_is_too_deep(tmp_path: Path, root: str) -> None:
    archive = zipped({root + name: data for name, data in WHOLE.items()})
    refuse(put_zip(tmp_path, archive), "leaves it or is malformed|manifest.json is missing")


def test_a_link_may_stay_inside_but_not_leave(tmp_path: Path) -> None:
    inside = write_folder(tmp_path / "tiny", with_manifest({**FILES, "again.onnx": FILES["network.onnx"]}))
    (inside / "again.onnx").unlink()
    (inside / "again.onnx").symlink_to("network.onnx")
    assert Bundle.open(inside).read("again.onnx") == FILES["network.onnx"]
    for target in (write_folder(tmp_path / "outside", FILES) / "network.onnx", Path("../outside/network.onnx")):
        (inside / "again.onnx").unlink()
        (inside / "again.onnx").symlink_to(target)
        refuse(inside, "again.onnx is a link that leaves the bundle; put the file itself there")


@pytest.mark.parametrize("target", ["../outside", "priors", ".", "loop", "absent"])
def test_a_linked_folder(tmp_path: Path, target: str) -> None:
    files = {**FILES, "loop/network.onnx": FILES["network.onnx"]}
    write_folder(tmp_path / "outside", FILES)
    inside = write_folder(tmp_path / "tiny", with_manifest({**FILES, "priors/network.onnx": FILES["network.onnx"]}))
    (inside / "loop").symlink_to(target)
    refuse(inside, "loop is not listed in manifest.json")
    write_folder(inside, {MANIFEST: with_manifest(files)[MANIFEST]})
    refuse(inside, "link that leaves|is missing|not listed")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a device"])
def test_what_is_no_file_is_missing(tmp_path: Path, kind: str) -> None:
    path = write_folder(tmp_path / "tiny", WHOLE) / REFERENCE
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    refuse(tmp_path / "tiny", "reference.npz is missing")
    refuse(path, "manifest.json is missing|does not exist as folder or file")


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    deep = "/".join(["d" * 100] * 2)
    inside = tmp_path
    while len(str(inside)) < 3950:
        inside /= "d" * min(200, 3990 - len(str(inside)))
    files = with_manifest({**FILES, f"{deep}/x": b""})
    refuse(write_folder(inside, {name: files[name] for name in WHOLE}), "cannot be read: File name too long")


def patched(archive: bytes, signature: bytes, at: int, data: bytes) -> bytes:
    """An archive with bytes put into each of its headers of one kind."""
    changed, header = bytearray(archive), archive.find(signature)
    while header >= 0:
        changed[header + at : header + at + len(data)] = data
        header = archive.find(signature, header + 1)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
ARCHIVE = zipped(WHOLE)
SPOILT = {
    "encrypted": (patched(patched(ARCHIVE, LOCAL, 6, b"\1"), CENTRAL, 8, b"\1"), "is encrypted"),
    "bzip2": (zipped(WHOLE, zipfile.ZIP_BZIP2), "packed by method 12"),
    "lzma": (zipped(WHOLE, zipfile.ZIP_LZMA), "packed by method 14"),
    "unknown method": (patched(ARCHIVE, CENTRAL, 10, b"\x63"), "packed by method 99"),
    "future version": (patched(ARCHIVE, CENTRAL, 6, b"\xff"), "zip file version 25.5"),
    "corrupt members": (patched(ARCHIVE, LOCAL, 30 + len("network.onnx") + 1, b"\xff" * 60), "cannot be unpacked"),
    "corrupt deflate": (patched(ARCHIVE, LOCAL, 43, b"\x07"), "cannot be unpacked"),
    "other name inside": (patched(ARCHIVE, LOCAL, 30, b"m"), "File name in directory .* differ"),
    "name no UTF-8": (patched(patched(ARCHIVE, CENTRAL, 8, b"\0\x08"), CENTRAL, 46, b"\xff"), "no bundle: 'utf-8'"),
    "no name": (patched(ARCHIVE, CENTRAL, 46, b"\0"), "the path '' in the archive leaves it or is malformed"),
    "no directory": (patched(ARCHIVE, END, 16, b"\xff\xff\xff\x7f"), "is no bundle|cannot be unpacked"),
    "cut off": (ARCHIVE[: len(ARCHIVE) // 2], "is no bundle: File is not a zip file"),
    "offset outside": (patched(ARCHIVE, CENTRAL, 42, b"\xff\xff\xff\x7f"), "cannot be unpacked"),
    "two roots": (zipped({"tiny/" + n: d for n, d in WHOLE.items()} | {"other/x": b""}), "manifest.json is missing"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_zips(tmp_path: Path, case: str) -> None:
    archive, says = SPOILT[case]
    refuse(put_zip(tmp_path, archive), says)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", WHOLE)
def test_a_name_twice_in_a_zip(tmp_path: Path, name: str) -> None:
    refuse(put_zip(tmp_path, zipped([*WHOLE.items(), (name, WHOLE[name])])), "two files have the same name")


def test_folders_in_a_zip_are_no_files(tmp_path: Path) -> None:
    opened = Bundle.open(put_zip(tmp_path, zipped({"empty/": b"", **WHOLE})))
    assert opened.read(REFERENCE) == FILES[REFERENCE]


@pytest.mark.parametrize("lie", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_a_member_larger_than_declared_is_not_unpacked(tmp_path: Path, name: str, lie: bool) -> None:
    """64 MB of zeros for a small file; ``lie``: with the small file's length in the archive's headers."""
    bomb = zipped({**WHOLE, name: bytes(2**26)})
    if lie:
        for signature, at in ((LOCAL, 22), (CENTRAL, 24)):
            bomb = patched(bomb, signature, at, len(WHOLE[name]).to_bytes(4, "little"))
    path = put_zip(tmp_path, bomb)
    limit = 2**26 if name == MANIFEST and not lie else 2**20
    assert peak_memory(lambda: refuse(path, "larger|cannot be|is not the file")) < limit
