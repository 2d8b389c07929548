"""
The seam to Windows, second half: processes, jobs, the console. As thin as kmd.shim.windows.calls; nothing here decides.
"""

import sys

assert sys.platform == "win32"

import ctypes
from collections.abc import Callable, Sequence
from ctypes import wintypes

from kmd.shim.windows.calls import BOOL, DWORD, HANDLE, LPCWSTR, LPVOID, PDWORD, check, check_handle, kernel

STARTF_USESHOWWINDOW, STARTF_USESTDHANDLES = 1, 0x100
PROC_THREAD_ATTRIBUTE_HANDLE_LIST = 0x00020002
JOB_EXTENDED_LIMITS = 9


class StartupInfo(ctypes.Structure):
    """STARTUPINFOEXW."""

    _fields_ = (
        ("size", DWORD),
        ("reserved", wintypes.LPWSTR),
        ("desktop", wintypes.LPWSTR),
        ("title", wintypes.LPWSTR),
        ("x", DWORD),
        ("y", DWORD),
        ("x_size", DWORD),
        ("y_size", DWORD),
        ("x_chars", DWORD),
        ("y_chars", DWORD),
        ("fill", DWORD),
        ("flags", DWORD),
        ("show_window", wintypes.WORD),
        ("reserved2_bytes", wintypes.WORD),
        ("reserved2", LPVOID),
        ("stdin", HANDLE),
        ("stdout", HANDLE),
        ("stderr", HANDLE),
        ("attributes", LPVOID),
    )


class ProcessInformation(ctypes.Structure):
    _fields_ = (("process", HANDLE), ("thread", HANDLE), ("pid", DWORD), ("thread_id", DWORD))


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION, of which only `flags` is ever set."""

    _fields_ = (
        ("process_time", ctypes.c_int64),
        ("job_time", ctypes.c_int64),
        ("flags", DWORD),
        ("working_set_min", ctypes.c_size_t),
        ("working_set_max", ctypes.c_size_t),
        ("processes", DWORD),
        ("affinity", ctypes.c_size_t),
        ("priority", DWORD),
        ("scheduling", DWORD),
        ("io_counters", ctypes.c_uint64 * 6),
        ("process_memory", ctypes.c_size_t),
        ("job_memory", ctypes.c_size_t),
        ("process_peak", ctypes.c_size_t),
        ("job_peak", ctypes.c_size_t),
    )


_CreateProcess = kernel(
    "CreateProcessW", BOOL, LPCWSTR, LPVOID, LPVOID, LPVOID, BOOL, DWORD, LPVOID, LPCWSTR, LPVOID, LPVOID
)  # fmt: skip
_ResumeThread = kernel("ResumeThread", DWORD, HANDLE)
_TerminateProcess = kernel("TerminateProcess", BOOL, HANDLE, wintypes.UINT)
_GetExitCodeProcess = kernel("GetExitCodeProcess", BOOL, HANDLE, PDWORD)
_InitializeAttributes = kernel(
    "InitializeProcThreadAttributeList", BOOL, LPVOID, DWORD, DWORD, ctypes.POINTER(ctypes.c_size_t)
)  # fmt: skip
_UpdateAttribute = kernel(
    "UpdateProcThreadAttribute", BOOL, LPVOID, DWORD, ctypes.c_size_t, LPVOID, ctypes.c_size_t, LPVOID, LPVOID
)  # fmt: skip
_DeleteAttributes = kernel("DeleteProcThreadAttributeList", None, LPVOID)
_GetStartupInfo = kernel("GetStartupInfoW", None, LPVOID)
_CreateJobObject = kernel("CreateJobObjectW", HANDLE, LPVOID, LPCWSTR)
_SetInformationJobObject = kernel("SetInformationJobObject", BOOL, HANDLE, ctypes.c_int, LPVOID, DWORD)
_AssignProcessToJobObject = kernel("AssignProcessToJobObject", BOOL, HANDLE, HANDLE)
_GetConsoleCP = kernel("GetConsoleCP", wintypes.UINT)
ConsoleHandler = ctypes.WINFUNCTYPE(BOOL, DWORD)
_SetConsoleCtrlHandler = kernel("SetConsoleCtrlHandler", BOOL, ConsoleHandler, BOOL)
_GetSystemDirectory = kernel("GetSystemDirectoryW", wintypes.UINT, wintypes.LPWSTR, wintypes.UINT)


def create_process(
    application: str, command_line: str, stdio: Sequence[int | None], flags: int, *, starts_hidden: int | None
) -> tuple[int, int, int]:
    """
    CreateProcessW with this process's environment and folder: (process, its first thread, pid).

    stdio: inheritable handles, or None, for stdin, stdout and stderr; the child gets these and nothing else.
    starts_hidden: what wShowWindow is to be, if anything.
    """
    info, made = StartupInfo(), ProcessInformation()
    info.size, info.flags = ctypes.sizeof(info), STARTF_USESTDHANDLES
    info.stdin, info.stdout, info.stderr = stdio
    if starts_hidden is not None:
        info.flags, info.show_window = STARTF_USESTDHANDLES | STARTF_USESHOWWINDOW, starts_hidden
    given = sorted({handle for handle in stdio if handle is not None})
    inherited = (HANDLE * len(given))(*given)
    size = ctypes.c_size_t()
    _InitializeAttributes(None, 1, 0, ctypes.byref(size))
    attributes = ctypes.create_string_buffer(size.value)
    check(_InitializeAttributes(attributes, 1, 0, ctypes.byref(size)))
    try:
        if given:
            check(
                _UpdateAttribute(
                    attributes, 0, PROC_THREAD_ATTRIBUTE_HANDLE_LIST, inherited, ctypes.sizeof(inherited), None, None
                )
            )
        info.attributes = ctypes.addressof(attributes)
        words = ctypes.create_unicode_buffer(command_line)
        check(
            _CreateProcess(
                application, words, None, None, bool(given), flags, None, None, ctypes.byref(info), ctypes.byref(made)
            )
        )
    finally:
        _DeleteAttributes(attributes)
    return int(made.process), int(made.thread), int(made.pid)


def resume_thread(thread: int) -> None:
    check(_ResumeThread(thread) != 0xFFFFFFFF)


def terminate_process(process: int, exit_code: int) -> None:
    check(_TerminateProcess(process, exit_code))


def exit_code(process: int) -> int:
    """Of a process that has ended: 0 to 0xFFFFFFFF."""
    code = DWORD()
    check(_GetExitCodeProcess(process, ctypes.byref(code)))
    return code.value


def shown_window() -> int | None:
    """What this process's starter wants its first window to be (wShowWindow); None when it did not say."""
    info = StartupInfo()
    _GetStartupInfo(ctypes.byref(info))
    return int(info.show_window) if info.flags & STARTF_USESHOWWINDOW else None


def create_job(limit_flags: int) -> int:
    """A job object with these limits; what closes its last handle applies them."""
    job = check_handle(_CreateJobObject(None, None))
    limit_job(job, limit_flags)
    return job


def limit_job(job: int, limit_flags: int) -> None:
    """Replace the limits."""
    limits = JobLimits(flags=limit_flags)
    check(_SetInformationJobObject(job, JOB_EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)))


def assign_to_job(job: int, process: int) -> None:
    check(_AssignProcessToJobObject(job, process))


def has_console() -> bool:
    return bool(_GetConsoleCP())


def handle_console_events(handler: Callable[[int], bool]) -> object:
    """Have *handler* called, in a thread of its own, for CTRL_C_EVENT and the like; keep what this returns."""
    callback = ConsoleHandler(handler)
    check(_SetConsoleCtrlHandler(callback, True))
    return callback


def system_directory() -> str:
    r"""`C:\Windows\System32`, from the system and not from a variable."""
    buffer = ctypes.create_unicode_buffer(wintypes.MAX_PATH)
    check(_GetSystemDirectory(buffer, len(buffer)))
    return buffer.value
