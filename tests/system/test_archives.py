"""An archive holds what was put in, and one that was made to harm is refused before it has done anything."""

import io
import zipfile

import pytest

from ppl_vae.system.archives import to_zip, unpacked
from ppl_vae.system.files import CHECKSUMS, to_checksums

FILES = {"weights.safetensors": bytes(range(256)) * 40, "config.json": b"{}", "README.md": "± 1".encode()}


def read(path):
    with unpacked(path) as folder:
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def zipped(*members, compression=zipfile.ZIP_STORED):
    """With just these members, names and contents."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name) if isinstance(name, str) else name, content, compression)
    return archive.getvalue()


SUMS = (CHECKSUMS, to_checksums(FILES))


def test_what_is_put_in_comes_out_and_nothing_is_left(tmp_path):
    (path := tmp_path / "run.zip").write_bytes(to_zip(FILES))
    assert read(path) == {**FILES, CHECKSUMS: SUMS[1]}
    assert to_zip(FILES) == path.read_bytes()
    with unpacked(path) as folder:
        pass
    assert not folder.exists()
    with unpacked(tmp_path) as folder:
        assert folder == tmp_path


def test_what_is_found_inside_has_its_name(tmp_path):
    (path := tmp_path / "run.zip").write_bytes(to_zip(FILES))
    with pytest.raises(ValueError, match=r"^\S*run\.zip/config\.json: expected more$"), unpacked(path) as folder:
        raise ValueError(f"{folder / 'config.json'}: expected more")


def link():
    info = zipfile.ZipInfo("config.json")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(SUMS, *FILES.items(), ("../escaped.json", b"{}")), r"expected the name of a file; got '\.\./escaped"),
        (zipped(SUMS, *FILES.items(), ("/tmp/escaped.json", b"{}")), "expected the name of a file; got '/tmp"),
        (zipped(SUMS, *FILES.items(), ("a/b.json", b"{}")), "expected the name of a file; got 'a/b"),
        (zipped(SUMS, *FILES.items(), ("..\\b.json", b"{}")), "expected the name of a file"),
        (zipped(SUMS, *FILES.items(), ("model.pkl", b"")), "expected the name of a file; got 'model.pkl'"),
        (zipped(SUMS, *FILES.items(), ("more.json", b"{}")), "and the files in it; got .*more.json"),
        (zipped(SUMS, *FILES.items(), ("Config.json", b"{}")), "expected each name once"),
        (zipped(SUMS, *list(FILES.items())[:2]), "expected checksums.json and the files in it"),
        (zipped(*FILES.items()), "expected checksums.json and the files in it"),
        (zipped((CHECKSUMS, b"[]"), *FILES.items()), "expected checksums as they were written"),
        (zipped(SUMS, *{**FILES, "config.json": b"[]"}.items()), "config.json: expected the file as it was written"),
        (zipped(SUMS, *FILES.items(), compression=zipfile.ZIP_DEFLATED), "expected a stored file; got a compressed"),
        (to_zip(FILES)[:-30], "not a zip file"),
        (b"", "not a zip file"),
    ],
)
def test_another_is_refused_in_one_line(content, message, tmp_path):
    (path := tmp_path / "inside" / "run.zip").parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^\S*run\.zip: expected a whole archive.*{message}") as error:
        read(path)
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.rglob("*")] == ["inside", "run.zip"]


def test_a_link_is_a_file_with_a_path_in_it(tmp_path):
    (path := tmp_path / "run.zip").write_bytes(
        zipped((CHECKSUMS, to_checksums({"config.json": b"/etc"})), (link(), b"/etc"))
    )
    with unpacked(path) as folder:
        assert not (folder / "config.json").is_symlink()


def test_files_that_overlap_are_refused(tmp_path):
    """Each of many entries claims the same bytes: together more than there are."""
    content = bytearray(zipped(("a.json", bytes(5000)), *((f"b{i}.json", b"") for i in range(9))))
    (path := tmp_path / "run.zip").write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    sizes = content.index((5000).to_bytes(4, "little") * 2, start)
    for i in range(9):
        entry = content.index(f"b{i}.json".encode(), start) - 46
        content[entry + 16 : entry + 28] = content[sizes - 4 : sizes + 8]  # its checksum and both sizes
        content[entry + 42 : entry + 46] = bytes(4)  # and where it begins
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"expected files of at most .* bytes; got 50,000 bytes"):
        read(path)
