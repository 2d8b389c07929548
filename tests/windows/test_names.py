"""Names of pipes: one for each meeting place, however it is spelled, the same for km, kmd and kmctl."""

import hashlib
import ntpath
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmd.shim.windows.names import CONTROL, RELAY, file_sddl, folder_sddl, pipe_name, pipe_sddl

HOME = r"C:\Users\Ada\.kilometers"
SAME = (
    r"c:\users\ADA\.Kilometers",
    "C:/Users/Ada/.kilometers",
    "C:\\Users\\Ada\\.kilometers\\",
    r"C:\Users\Bob\..\Ada\.\.kilometers",
    "\\\\?\\C:\\Users\\Ada\\.kilometers",
)
OTHERS = (
    r"D:\Users\Ada\.kilometers",
    r"C:\Users\Ada\kilometers",
    r"C:\Users\Ada",
    "C:\\",
    r"\\host\c$\Users\Ada\.kilometers",
)
PARTS = st.lists(
    st.text(st.characters(exclude_characters='\\/:*?"<>|\0', exclude_categories=["Cs"]), min_size=1), max_size=5
)


def test_the_name_is_a_hash_of_the_folder_and_the_purpose() -> None:
    digits = hashlib.sha256(rb"c:\users\ada\.kilometers").hexdigest()[:16]
    assert pipe_name(HOME, RELAY) == rf"\\.\pipe\kilometers-{digits}-relay"
    assert pipe_name(HOME, CONTROL) == rf"\\.\pipe\kilometers-{digits}-control"


@pytest.mark.parametrize("home", SAME)
def test_one_folder_has_one_name(home: str) -> None:
    assert pipe_name(home, RELAY) == pipe_name(HOME, RELAY)


def test_different_folders_have_different_names() -> None:
    assert len({pipe_name(home, RELAY) for home in (HOME, *OTHERS)}) == 1 + len(OTHERS)


def test_a_share_has_one_name_also_as_a_long_path() -> None:
    share = r"\\Host\share\home"
    assert pipe_name(share, RELAY) == pipe_name("\\\\?\\UNC\\host\\SHARE\\home\\", RELAY)


@pytest.mark.parametrize("root", [r"\\host\share", r"C:\home"])
def test_a_closing_backslash_does_not_count(root: str) -> None:
    assert pipe_name(root, RELAY) == pipe_name(root + "\\", RELAY)


@pytest.mark.parametrize("home", ["", ".", "C:", "C:home", r"\home", "/home/ada", "home"])
def test_only_an_absolute_path_has_a_name(home: str) -> None:
    with pytest.raises(ValueError, match="absolute"):
        pipe_name(home, RELAY)


def test_there_are_two_purposes() -> None:
    with pytest.raises(ValueError, match="relay or control"):
        pipe_name(HOME, "Relay")


@given(PARTS)
def test_a_name_is_short_plain_text_and_stays_the_same_when_normalised(parts: list[str]) -> None:
    home = ntpath.join("C:\\", *parts)
    name = pipe_name(home, RELAY)
    assert re.fullmatch(r"\\\\\.\\pipe\\kilometers-[0-9a-f]{16}-relay", name)
    assert name == pipe_name(ntpath.normpath(home), RELAY) == pipe_name(home.replace("\\", "/"), RELAY)


def test_a_half_surrogate_in_a_path_is_no_obstacle() -> None:
    assert pipe_name("C:\\\ud800", RELAY) != pipe_name("C:\\\udfff", RELAY)


def test_descriptors_name_the_user_and_at_most_the_system() -> None:
    sid = "S-1-5-21-1-2-3-1001"
    assert pipe_sddl(sid) == f"O:{sid}D:P(A;;GA;;;{sid})"
    for sddl in (pipe_sddl(sid), folder_sddl(sid), file_sddl(sid)):
        assert sddl.startswith(f"O:{sid}D:P(")
        assert set(re.findall(r";;;([^)]+)\)", sddl)) <= {sid, "SY"}
