import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_gpt import files
from keras_gpt.files import (
    atomic_path,
    atomic_update,
    checksum,
    locked,
    read_json,
    remove_leftovers,
    write_json,
)


def names(folder):
    """What is in the folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.weights.h5"
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename within one file system
        assert temporary.suffix == ".h5"
    assert path.read_text() == "half"
    assert names(path.parent) == ["file.weights.h5"]


def test_an_existing_file_is_replaced(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError("No space left"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def write(path, error=None):
        with atomic_path(path) as temporary:
            temporary.mkdir()
            (temporary / "part").write_text("1")
            if error:
                raise error

    with pytest.raises(OSError, match="full"):
        write(tmp_path / "folder", OSError("full"))
    assert names(tmp_path) == []
    write(tmp_path / "folder")
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "part").read_text() == "1"


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "part").write_text("1")
    with (
        pytest.raises(FileExistsError, match="folder is an existing folder"),
        atomic_path(folder),
    ):
        pass
    assert names(folder) == ["part"]


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("1")
    for path in (tmp_path / "file" / "new", tmp_path / "file" / "in" / "new"):
        with pytest.raises(NotADirectoryError, match=r"file.* can't be a folder"):
            write_json(path, {})


def test_what_a_killed_process_of_the_same_number_left_is_in_nobodys_way(tmp_path):
    (tmp_path / f".{os.getpid()}.partial").mkdir()
    (tmp_path / f".{os.getpid()}.partial.a.txt").mkdir()
    with atomic_update(tmp_path) as temporary:
        (temporary / "a.txt").write_text("1")
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("2")
    assert (tmp_path / "a.txt").read_text() == "2"
    with locked(tmp_path):
        assert names(tmp_path) == [".lock", "a.txt"]


def test_old_leftovers_go_with_the_next_write_and_those_of_others_stay(tmp_path):
    old, new, other = ".0123.partial.x", ".4567.partial.x", ".x.partial"
    for name in (old, new, other):
        (tmp_path / name).write_text("half")
    two_days_ago = time.time() - 2 * 24 * 3600
    for name in (old, other):
        os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == [new, other, "a.json"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [other, "a.json"]


def test_a_full_disk_is_told_with_the_name_of_what_was_written(tmp_path):
    def write(writer, path):
        with writer(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    for writer, path in ((atomic_path, "a.txt"), (atomic_update, "folder")):
        with pytest.raises(OSError, match=f"{path} can't be written: No space") as info:
            write(writer, tmp_path / path)
        assert info.value.errno == errno.ENOSPC


def test_a_folder_is_locked_for_one_process(tmp_path):
    take = (
        "import sys; from files import locked; lock = locked(sys.argv[1]); "
        "lock.__enter__(); print('taken', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", take, str(tmp_path)]
    pipe = subprocess.PIPE
    # the module alone, which Python can load without Keras
    place = Path(files.__file__).parent
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=place
    ) as other:
        assert other.stdout.readline() == "taken\n"
        with pytest.raises(BlockingIOError, match=tmp_path.name), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path):
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        write_json(tmp_path / "a.json", 1)
    with locked(tmp_path):
        pass


def test_a_checksum_changes_with_each_byte(tmp_path):
    path = tmp_path / "a.bin"
    content = bytearray(os.urandom(3 * 2**20))
    path.write_bytes(content)
    original = checksum(path)
    assert original == checksum(path) == checksum(path, len(content))
    assert checksum(path, 9) != original
    for place in (0, 2**20, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        assert checksum(path) != original
        content[place] ^= 1


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"name": "Ærøskøbing \U0001f600", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "Ærøskøbing" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_content_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert read_json(tmp_path / "a.json") == {"old": 1}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("content", [b'{"half": [1, 2', b"", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_named(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.json is not valid JSON"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        read_json(tmp_path / "nothing.json")
