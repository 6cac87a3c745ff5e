import pytest

from keras_gpt.files import atomic_path, read_json, write_json


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
