"""The spool's disk: left alone after a stall or a refusal, though not for ever."""

from kmd.shim.disk import REFUSED_PAUSE_S, SLOW_DISK_PAUSES, SLOW_DISK_S, Disk

NOW_S = 1000.0


def test_a_quick_write_changes_nothing() -> None:
    disk = Disk()
    disk.judge(NOW_S, NOW_S + SLOW_DISK_S / 2, done=True)
    assert disk.may_be_tried(NOW_S + SLOW_DISK_S / 2)


def test_a_stall_costs_a_pause_in_proportion_whether_or_not_it_was_written() -> None:
    for done in (True, False):
        disk = Disk()
        disk.judge(NOW_S, NOW_S + 2.0, done=done)
        again_s = NOW_S + 2.0 + SLOW_DISK_PAUSES * 2.0
        assert not disk.may_be_tried(again_s - 0.01)
        assert disk.may_be_tried(again_s)


def test_a_refusal_is_tried_again_after_a_moment() -> None:
    disk = Disk()
    disk.judge(NOW_S, NOW_S + 0.01, done=False)
    assert not disk.may_be_tried(NOW_S + REFUSED_PAUSE_S)
    assert disk.may_be_tried(NOW_S + 0.01 + REFUSED_PAUSE_S)
