"""Replacing a file: what goes along, what is refused, and that a refusal changes nothing."""

import os
import stat
from pathlib import Path

import pytest

from kmctl.clients.files import FILE_MAX_BYTES, FileRefused, find_backups, read_file, replace_file
from kmctl.clients.undo_store import hold_lock

STAMP = "20260102T030405.000006Z"


def replace(path: Path, raw: bytes) -> Path:
    return replace_file(path, read_file(path), raw, STAMP)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755, 0o400])
def test_the_mode_stays_and_the_backup_is_private(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    path.chmod(mode)
    backup = replace(path, b"new")
    assert (path.read_bytes(), backup.read_bytes()) == (b"new", b"old")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert backup == tmp_path / f"a.json.kilometers-{STAMP}.bak"
    assert find_backups(path) == [backup]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", backup.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    os.chown(path, 1234, 2345)
    replace(path, b"new")
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (1234, 2345)


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="no extended attributes in this Python")
def test_extended_attributes_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:
        pytest.skip("no extended attributes on this file system")
    replace(path, b"new")
    assert os.getxattr(path, "user.note") == b"mine"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "a.json"
    real.write_bytes(b"old")
    (tmp_path / "middle").symlink_to("dotfiles/a.json")
    link = tmp_path / "link"
    link.symlink_to("middle")
    backup = replace(link, b"new")
    assert link.readlink() == Path("middle")
    assert real.read_bytes() == b"new"
    assert not real.is_symlink()
    assert backup.parent == real.parent


def check_untouched(folder: Path, path: Path, raw: bytes) -> None:
    """The file says *raw*, and nothing lies beside it."""
    assert path.read_bytes() == raw
    assert [one.name for one in folder.iterdir()] == [path.name]


def test_a_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    before = read_file(path)
    path.write_bytes(b"else")
    with pytest.raises(FileRefused, match="has changed since it was read"):
        replace_file(path, before, b"new", STAMP)
    check_untouched(tmp_path, path, b"else")


def test_a_file_that_was_replaced_by_an_equal_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    before = read_file(path)
    (tmp_path / "b").write_bytes(b"old")
    (tmp_path / "b").replace(path)
    with pytest.raises(FileRefused, match="has changed"):
        replace_file(path, before, b"new", STAMP)
    check_untouched(tmp_path, path, b"old")


def test_a_file_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    before = read_file(path)
    path.unlink()
    with pytest.raises(FileRefused, match="cannot be read"):
        replace_file(path, before, b"new", STAMP)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(FileRefused):
            read_file(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(FileRefused, match="cannot be read"):
        read_file(tmp_path / "loop")


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(FILE_MAX_BYTES + 1)
    with pytest.raises(FileRefused, match="larger than 64 MiB"):
        read_file(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FileRefused, match="cannot be written"):
            replace(path, b"new")
    finally:
        tmp_path.chmod(0o700)
    check_untouched(tmp_path, path, b"old")


def test_a_planted_draft_or_backup_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    (tmp_path / "victim").write_bytes(b"victim")
    for name in (f".a.json.kilometers-{STAMP}.tmp", f"a.json.kilometers-{STAMP}.bak"):
        (tmp_path / name).symlink_to("victim")
        with pytest.raises(FileRefused, match="cannot be written"):
            replace(path, b"new")
        (tmp_path / name).unlink(missing_ok=True)
        assert (path.read_bytes(), (tmp_path / "victim").read_bytes()) == (b"old", b"victim")


def test_two_runs_do_not_meet(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    with hold_lock(state) as folder:
        assert stat.S_IMODE(state.stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(FileRefused, match="another kmctl"), hold_lock(state):
            raise AssertionError
    with hold_lock(state):
        pass
