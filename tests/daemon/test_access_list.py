"""Who may get at a folder on Windows, from its descriptor's text. The texts are what Windows prints."""

import pytest

from kmd.access_list import EVERYBODY, find_others

ME = "S-1-5-21-1004336348-1177238915-682003330-1001"
OTHER = "S-1-5-21-1004336348-1177238915-682003330-1002"
PROFILE = f"O:{ME}D:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{ME})"
"""A user's profile folder."""
ROOT = "O:S-1-5-80-956008885G:S-1-5-80-956008885D:PAI(A;OICIIO;SDGXGWGR;;;AU)(A;;0x1301bf;;;AU)(A;OICI;FA;;;SY)"
"""The root of a disk."""


@pytest.mark.parametrize(
    ("sddl", "others"),
    [
        (PROFILE, []),
        (f"{PROFILE}S:AI(AU;OICISA;FA;;;WD)", []),  # what is recorded lets nobody in
        (f"O:BAG:DUD:AI(A;ID;FA;;;{ME})(A;OICIIO;GA;;;CO)(A;;FA;;;OW)", []),  # made by an elevated program
        (f"O:{ME}D:", []),  # an empty list: nobody
        (f"O:{ME}D:P(D;;GA;;;NU)(A;;GA;;;{ME})", []),
        (f"{PROFILE}(A;;FR;;;WD)", ["WD"]),
        (f"{PROFILE}(A;OICIID;0x1200a9;;;BU)(A;OICIID;0x1200a9;;;BU)(A;;FA;;;{OTHER})", ["BU", OTHER]),
        (f"O:{OTHER}D:P(A;;FA;;;{ME})", [OTHER]),  # its owner may give himself more
        (ROOT, ["S-1-5-80-956008885", "AU"]),
        (f"O:{ME}", [EVERYBODY]),
        (f"O:{ME}D:NO_ACCESS_CONTROL", [EVERYBODY]),
        ("", [EVERYBODY]),
        (f'O:{ME}D:(XA;;FX;;;WD;(@User.Title=="PM" && (@User.Level==7)))', ["WD"]),
        (f'O:{ME}D:(A;;FA;;;WD)(XA;;FX;;;{ME};(@User.Name=="D:"))', [EVERYBODY]),  # cannot be read for sure
        (f"O:{ME}D:(OA;;RP;bf967a86-0de6-11d0-a285-00aa003049e2;;{OTHER})", [OTHER]),
    ],
)
def test_others(sddl: str, others: list[str]) -> None:
    assert find_others(sddl, ME) == others


def test_the_local_administrator_is_himself_and_nobody_elses() -> None:
    assert find_others("O:LAD:P(A;;FA;;;LA)", "S-1-5-21-1-2-3-500") == []
    assert find_others("O:LAD:P(A;;FA;;;LA)", "S-1-5-21-1-2-3-1500") == ["LA"]


def test_the_folders_that_we_make_are_private() -> None:
    from kmd.shim.windows.names import file_sddl, folder_sddl, pipe_sddl

    assert [find_others(made(ME), ME) for made in (folder_sddl, file_sddl, pipe_sddl)] == [[], [], []]
    assert find_others(folder_sddl(OTHER), ME) == [OTHER]
