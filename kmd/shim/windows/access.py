"""
More of kmd.shim.windows.calls: who a process belongs to, and who may get at a folder. Thin; kmd and kmctl ask.
"""

import sys

assert sys.platform == "win32"

import ctypes
from ctypes import wintypes

from kmd.shim.windows.calls import (
    LPVOID,
    SDDL_REVISION,
    SE_FILE_OBJECT,
    check,
    check_handle,
    close_handle,
    declare,
    kernel,
    user_sid,
)

PROCESS_QUERY_LIMITED_INFORMATION = 0x1000
OWNER_AND_LIST = 1 | 4
"""OWNER_SECURITY_INFORMATION, DACL_SECURITY_INFORMATION."""

_advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
_OpenProcess = kernel("OpenProcess", wintypes.HANDLE, wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
_LocalFree = kernel("LocalFree", LPVOID, LPVOID)
_GetNamedSecurityInfo = declare(
    _advapi32, "GetNamedSecurityInfoW", wintypes.DWORD, wintypes.LPCWSTR, ctypes.c_int, wintypes.DWORD,
    LPVOID, LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID),
)  # fmt: skip
_ConvertSecurityDescriptorToString = declare(
    _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", wintypes.BOOL,
    LPVOID, wintypes.DWORD, wintypes.DWORD, ctypes.POINTER(LPVOID), LPVOID,
)  # fmt: skip


def process_user_sid(pid: int) -> str:
    """The user of the process *pid*. Raises OSError: it has ended, or is not shown to us (an elevated one)."""
    process = check_handle(_OpenProcess(PROCESS_QUERY_LIMITED_INFORMATION, False, pid))
    try:
        return user_sid(process)
    finally:
        close_handle(process)


def folder_access(path: str) -> str:
    """Owner and access list of the file or folder at *path*, as SDDL. Raises OSError."""
    descriptor, text = LPVOID(), LPVOID()
    error = _GetNamedSecurityInfo(
        path, SE_FILE_OBJECT, OWNER_AND_LIST, None, None, None, None, ctypes.byref(descriptor)
    )
    if error:
        raise ctypes.WinError(error)
    try:
        check(_ConvertSecurityDescriptorToString(descriptor, SDDL_REVISION, OWNER_AND_LIST, ctypes.byref(text), None))
        return ctypes.wstring_at(text.value or 0)
    finally:
        _LocalFree(text)
        _LocalFree(descriptor)
