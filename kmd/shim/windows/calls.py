"""
The seam to Windows: every system call that Kilometers makes there, declared once and thin. Nothing here decides.

Files, pipes, events, and whose they are; kmd.shim.windows.processes has those about processes. A *handle* is a plain
int. Whatever fails raises OSError with `winerror` set. Only to be imported on Windows; who does so begins with the same
assertion, which tells mypy (both runs of `make check`) as well.
"""

import sys

assert sys.platform == "win32"

import ctypes
from collections.abc import Callable, Sequence
from ctypes import wintypes

GENERIC_READ, GENERIC_WRITE = 0x80000000, 0x40000000
FILE_SHARE_READ, FILE_SHARE_DELETE = 1, 4
CREATE_NEW, OPEN_EXISTING, OPEN_ALWAYS = 1, 3, 4
FILE_FLAG_OVERLAPPED, FILE_FLAG_FIRST_PIPE_INSTANCE = 0x40000000, 0x00080000
SECURITY_SQOS_PRESENT, SECURITY_IDENTIFICATION = 0x00100000, 0x00010000
PIPE_ACCESS_DUPLEX, PIPE_REJECT_REMOTE_CLIENTS, PIPE_UNLIMITED_INSTANCES = 3, 8, 255
STD_INPUT, STD_OUTPUT, STD_ERROR = -10, -11, -12
FILE_TYPE_DISK, FILE_TYPE_CHAR, FILE_TYPE_PIPE = 1, 2, 3
INVALID_HANDLE = ctypes.c_void_p(-1).value
INFINITE, WAIT_TIMEOUT, WAIT_FAILED = 0xFFFFFFFF, 0x102, 0xFFFFFFFF
ERROR_FILE_NOT_FOUND, ERROR_PATH_NOT_FOUND, ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION = 2, 3, 5, 32
ERROR_BROKEN_PIPE, ERROR_BAD_EXE_FORMAT, ERROR_PIPE_BUSY, ERROR_NO_DATA, ERROR_MORE_DATA = 109, 193, 231, 232, 234
ERROR_PIPE_CONNECTED, ERROR_OPERATION_ABORTED, ERROR_IO_INCOMPLETE, ERROR_IO_PENDING = 535, 995, 996, 997
ERROR_ALREADY_EXISTS = 183
STATUS_PENDING, NTSTATUS_ERROR = 0x103, 0xC0000000
TOKEN_QUERY, TOKEN_USER = 8, 1
SE_FILE_OBJECT, SE_KERNEL_OBJECT = 1, 6
OWNER_SECURITY_INFORMATION = 1
SDDL_REVISION = 1
DUPLICATE_SAME_ACCESS = 2

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)

BOOL, DWORD, HANDLE, LPCWSTR, LPVOID = wintypes.BOOL, wintypes.DWORD, wintypes.HANDLE, wintypes.LPCWSTR, wintypes.LPVOID
PDWORD = ctypes.POINTER(DWORD)


class SecurityAttributes(ctypes.Structure):
    _fields_ = (("length", DWORD), ("descriptor", LPVOID), ("inherit", BOOL))


class Overlapped(ctypes.Structure):
    """OVERLAPPED, of an operation on a pipe; must live until the operation has ended."""

    _fields_ = (
        ("internal", ctypes.c_size_t),
        ("internal_high", ctypes.c_size_t),
        ("offset", DWORD),
        ("offset_high", DWORD),
        ("event", HANDLE),
    )


def declare(library: ctypes.WinDLL, name: str, result: object, *arguments: object) -> Callable[..., int]:
    """A function of a system library: what it returns and takes, as ctypes has it."""
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    declared: Callable[..., int] = function
    return declared


def kernel(name: str, result: object, *arguments: object) -> Callable[..., int]:
    """Likewise, of kernel32."""
    return declare(_kernel32, name, result, *arguments)


_CreateFile = kernel("CreateFileW", HANDLE, LPCWSTR, DWORD, DWORD, LPVOID, DWORD, DWORD, HANDLE)
_CreateNamedPipe = kernel("CreateNamedPipeW", HANDLE, LPCWSTR, DWORD, DWORD, DWORD, DWORD, DWORD, DWORD, LPVOID)
_ConnectNamedPipe = kernel("ConnectNamedPipe", BOOL, HANDLE, LPVOID)
_DisconnectNamedPipe = kernel("DisconnectNamedPipe", BOOL, HANDLE)
_ClientPid = kernel("GetNamedPipeClientProcessId", BOOL, HANDLE, PDWORD)
_CreatePipe = kernel("CreatePipe", BOOL, ctypes.POINTER(HANDLE), ctypes.POINTER(HANDLE), LPVOID, DWORD)
_ReadFile = kernel("ReadFile", BOOL, HANDLE, LPVOID, DWORD, PDWORD, LPVOID)
_WriteFile = kernel("WriteFile", BOOL, HANDLE, LPVOID, DWORD, PDWORD, LPVOID)
_GetOverlappedResult = kernel("GetOverlappedResult", BOOL, HANDLE, LPVOID, PDWORD, BOOL)
_PeekNamedPipe = kernel("PeekNamedPipe", BOOL, HANDLE, LPVOID, DWORD, LPVOID, LPVOID, LPVOID)
_CancelIoEx = kernel("CancelIoEx", BOOL, HANDLE, LPVOID)
_CloseHandle = kernel("CloseHandle", BOOL, HANDLE)
_GetStdHandle = kernel("GetStdHandle", HANDLE, DWORD)
_GetFileType = kernel("GetFileType", DWORD, HANDLE)
_DuplicateHandle = kernel(
    "DuplicateHandle", BOOL, HANDLE, HANDLE, HANDLE, ctypes.POINTER(HANDLE), DWORD, BOOL, DWORD
)  # fmt: skip
_CompareObjectHandles = declare(ctypes.WinDLL("kernelbase"), "CompareObjectHandles", BOOL, HANDLE, HANDLE)
_CreateEvent = kernel("CreateEventW", HANDLE, LPVOID, BOOL, BOOL, LPCWSTR)
_SetEvent = kernel("SetEvent", BOOL, HANDLE)
_ResetEvent = kernel("ResetEvent", BOOL, HANDLE)
_WaitForMultipleObjects = kernel("WaitForMultipleObjects", DWORD, DWORD, ctypes.POINTER(HANDLE), BOOL, DWORD)
_GetCurrentProcess = kernel("GetCurrentProcess", HANDLE)
_CreateDirectory = kernel("CreateDirectoryW", BOOL, LPCWSTR, LPVOID)
_GetDiskFreeSpace = kernel(
    "GetDiskFreeSpaceExW", BOOL, LPCWSTR, ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_uint64), LPVOID
)  # fmt: skip
_LocalFree = kernel("LocalFree", LPVOID, LPVOID)
_OpenProcessToken = declare(_advapi32, "OpenProcessToken", BOOL, HANDLE, DWORD, ctypes.POINTER(HANDLE))
_GetTokenInformation = declare(_advapi32, "GetTokenInformation", BOOL, HANDLE, ctypes.c_int, LPVOID, DWORD, PDWORD)
_ConvertSidToStringSid = declare(_advapi32, "ConvertSidToStringSidW", BOOL, LPVOID, ctypes.POINTER(LPVOID))
_GetSecurityInfo = declare(
    _advapi32, "GetSecurityInfo", DWORD, HANDLE, ctypes.c_int, DWORD,
    ctypes.POINTER(LPVOID), LPVOID, LPVOID, LPVOID, ctypes.POINTER(LPVOID),
)  # fmt: skip
_ConvertStringSecurityDescriptor = declare(
    _advapi32, "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL,
    LPCWSTR, DWORD, ctypes.POINTER(LPVOID), LPVOID,
)  # fmt: skip


def check(ok: object) -> None:
    """Raises OSError, as the system says, when a call has returned false."""
    if not ok:
        raise ctypes.WinError(ctypes.get_last_error())


def check_handle(handle: int | None) -> int:
    """Likewise, when it has returned no handle."""
    if handle is None or handle == INVALID_HANDLE:
        raise ctypes.WinError(ctypes.get_last_error())
    return handle


# Files and pipes


def create_file(
    path: str, access: int, share: int, disposition: int, flags: int = 0, security: "Security | None" = None
) -> int:
    """CreateFileW."""
    given = None if security is None else security.address
    return check_handle(_CreateFile(path, access, share, given, disposition, flags, None))


def open_pipe(name: str) -> int:
    """The client's end of a named pipe, overlapped; its server learns who this is, but cannot act as this user."""
    flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION
    return create_file(name, GENERIC_READ | GENERIC_WRITE, 0, OPEN_EXISTING, flags)


def create_named_pipe(name: str, security: "Security", buffer_bytes: int, *, first: bool) -> int:
    """
    The server's end, overlapped, bytes, this machine only.

    With *first* it fails (PermissionError) when somebody has a pipe of that name already.
    """
    mode = PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | (FILE_FLAG_FIRST_PIPE_INSTANCE if first else 0)
    kind, size, given = PIPE_REJECT_REMOTE_CLIENTS, buffer_bytes, security.address
    return check_handle(_CreateNamedPipe(name, mode, kind, PIPE_UNLIMITED_INSTANCES, size, size, 0, given))


def connect_named_pipe(handle: int, overlapped: int) -> int:
    """Wait for a client. Returns 0 or ERROR_PIPE_CONNECTED when one is there, else ERROR_IO_PENDING."""
    error = 0 if _ConnectNamedPipe(handle, overlapped) else ctypes.get_last_error()
    if error not in (0, ERROR_PIPE_CONNECTED, ERROR_IO_PENDING):
        raise ctypes.WinError(error)
    return error


def disconnect_named_pipe(handle: int) -> None:
    check(_DisconnectNamedPipe(handle))


def client_pid(handle: int) -> int:
    """The process at the other end of a server's pipe."""
    pid = DWORD()
    check(_ClientPid(handle, ctypes.byref(pid)))
    return pid.value


def create_pipe(buffer_bytes: int) -> tuple[int, int]:
    """An anonymous pipe: (read end, write end). Neither is inherited."""
    read_end, write_end = HANDLE(), HANDLE()
    check(_CreatePipe(ctypes.byref(read_end), ctypes.byref(write_end), None, buffer_bytes))
    return check_handle(read_end.value), check_handle(write_end.value)


def read_file(handle: int, buffer: "ctypes.Array[ctypes.c_char]") -> int:
    """
    Wait for bytes; returns how many are in *buffer* then.

    0 is the end of a file; on a pipe somebody has written nothing, and its end is ERROR_BROKEN_PIPE. Raises
    InterruptedError when a console's read was broken off by Control-C.
    """
    count = DWORD()
    ctypes.set_last_error(0)
    done = _ReadFile(handle, buffer, len(buffer), ctypes.byref(count), None)
    check(done or ctypes.get_last_error() == ERROR_MORE_DATA)  # the rest of a message in a pipe of messages
    if not count.value and ctypes.get_last_error() == ERROR_OPERATION_ABORTED:
        raise InterruptedError
    return count.value


def write_file(handle: int, data: bytes) -> int:
    """Wait until *data* is taken; returns how much of it was."""
    count = DWORD()
    check(_WriteFile(handle, data, len(data), ctypes.byref(count), None))
    return count.value


def start_read(handle: int, buffer: "ctypes.Array[ctypes.c_char]", overlapped: Overlapped) -> None:
    """Begin to read; both must live until `overlapped_result` has said the end."""
    if not _ReadFile(handle, buffer, len(buffer), None, ctypes.byref(overlapped)):
        _check_pending(overlapped)


def start_write(handle: int, data: bytes, overlapped: Overlapped) -> None:
    """Begin to write; likewise."""
    if not _WriteFile(handle, data, len(data), None, ctypes.byref(overlapped)):
        _check_pending(overlapped)


def _check_pending(overlapped: Overlapped) -> None:
    """It has not ended at once. One that could not begin leaves STATUS_PENDING behind, though nothing is under way."""
    error = ctypes.get_last_error()
    if error != ERROR_IO_PENDING:
        overlapped.internal = 0
        raise ctypes.WinError(error)


def overlapped_result(handle: int, overlapped: Overlapped, *, wait: bool) -> int:
    """How many bytes were moved. Raises BlockingIOError while it is not done, unless it is to wait."""
    count = DWORD()
    if not _GetOverlappedResult(handle, ctypes.byref(overlapped), ctypes.byref(count), wait):
        error = ctypes.get_last_error()
        if error == ERROR_IO_INCOMPLETE:
            raise BlockingIOError
        raise ctypes.WinError(error)
    return count.value


def cancel_io(handle: int, overlapped: Overlapped) -> None:
    """Ask for an end of the operation; `overlapped_result` says when that is."""
    _CancelIoEx(handle, ctypes.byref(overlapped))


def is_done(overlapped: Overlapped) -> bool:
    """Whether the operation has ended, however (HasOverlappedIoCompleted); also one that was never begun."""
    return bool(overlapped.internal != STATUS_PENDING)


def has_failed(overlapped: Overlapped) -> bool:
    """Whether the operation has ended with an error: for a read, that the other side has gone."""
    return bool(overlapped.internal & NTSTATUS_ERROR == NTSTATUS_ERROR)


def is_open_pipe(handle: int) -> bool:
    """Whether it is a pipe's reading end, and somebody may still write to it."""
    return bool(_PeekNamedPipe(handle, None, 0, None, None, None))


def close_handle(handle: int) -> None:
    _CloseHandle(handle)


def std_handle(which: int) -> int | None:
    """What this process was given as STD_INPUT, STD_OUTPUT or STD_ERROR; None for nothing."""
    handle = _GetStdHandle(which & 0xFFFFFFFF)
    return None if handle in (None, 0, INVALID_HANDLE) or not _GetFileType(handle) else int(handle)


def file_type(handle: int) -> int:
    return int(_GetFileType(handle))


def is_same_object(one: int, other: int) -> bool:
    """Whether both handles are of one and the same pipe or opened file."""
    return bool(_CompareObjectHandles(one, other))


def duplicate_for_child(handle: int) -> int:
    """A second handle of the same object that a child can inherit."""
    copy, process = HANDLE(), _GetCurrentProcess()
    check(_DuplicateHandle(process, handle, process, ctypes.byref(copy), 0, True, DUPLICATE_SAME_ACCESS))
    return check_handle(copy.value)


def disk_room(folder: str) -> tuple[int, int]:
    """(bytes that this user may still write there, bytes of the whole disk that the user may have)."""
    free, total = ctypes.c_uint64(), ctypes.c_uint64()
    check(_GetDiskFreeSpace(folder, ctypes.byref(free), ctypes.byref(total), None))
    return free.value, total.value


# Events


def create_event() -> int:
    """An event that stays set until it is reset."""
    return check_handle(_CreateEvent(None, True, False, None))


def set_event(event: int) -> None:
    _SetEvent(event)


def reset_event(event: int) -> None:
    _ResetEvent(event)


def wait_for_any(handles: Sequence[int], timeout_s: float | None) -> bool:
    """Until one of at most 64 *handles* is signalled. Returns whether one is."""
    array = (HANDLE * len(handles))(*handles)
    timeout_ms = INFINITE if timeout_s is None else max(0, min(round(timeout_s * 1000), INFINITE - 1))
    result = _WaitForMultipleObjects(len(handles), array, False, timeout_ms)
    check(result != WAIT_FAILED)
    return bool(result != WAIT_TIMEOUT)


# Whose is what


class Security:
    """SecurityAttributes made of SDDL, for the calls here. `address` points to nothing once this is gone."""

    def __init__(self, sddl: str) -> None:
        """Raises OSError for a descriptor that Windows cannot read."""
        descriptor = LPVOID()
        check(_ConvertStringSecurityDescriptor(sddl, SDDL_REVISION, ctypes.byref(descriptor), None))
        self._descriptor = descriptor
        self._attributes = SecurityAttributes(ctypes.sizeof(SecurityAttributes), descriptor, False)
        self.address = ctypes.addressof(self._attributes)

    def __del__(self) -> None:
        _LocalFree(self._descriptor)


def make_folder(path: str, sddl: str) -> None:
    """Raises FileExistsError when there is something of that name."""
    security = Security(sddl)  # named, so that it lives for as long as its address is used
    check(_CreateDirectory(path, security.address))


def current_user_sid() -> str:
    """This process's user, as `S-1-5-21-…`."""
    return user_sid(_GetCurrentProcess())


def user_sid(process: int) -> str:
    """Likewise of another process."""
    token, size = HANDLE(), DWORD()
    check(_OpenProcessToken(process, TOKEN_QUERY, ctypes.byref(token)))
    try:
        _GetTokenInformation(token, TOKEN_USER, None, 0, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        check(_GetTokenInformation(token, TOKEN_USER, buffer, size, ctypes.byref(size)))
        return _sid_text(LPVOID.from_buffer(buffer))
    finally:
        _CloseHandle(token)


def owner_sid(handle: int, kind: int = SE_KERNEL_OBJECT) -> str:
    """Who owns what *handle* is of: a pipe's maker. kind: SE_FILE_OBJECT for files and folders."""
    owner, descriptor = LPVOID(), LPVOID()
    error = _GetSecurityInfo(
        handle, kind, OWNER_SECURITY_INFORMATION, ctypes.byref(owner), None, None, None, ctypes.byref(descriptor)
    )
    if error:
        raise ctypes.WinError(error)
    try:
        return _sid_text(owner)
    finally:
        _LocalFree(descriptor)


def _sid_text(sid: "ctypes.c_void_p") -> str:
    text = LPVOID()
    check(_ConvertSidToStringSid(sid, ctypes.byref(text)))
    try:
        return ctypes.wstring_at(text.value or 0)
    finally:
        _LocalFree(text)
