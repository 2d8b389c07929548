"""The closed sets that every room shares: which way a message went, what it is, how an exchange ended."""

from enum import StrEnum


class Stream(StrEnum):
    """Which of a session's byte streams; `to_server` is the client's output, `to_client` the server's."""

    TO_SERVER = "to_server"
    TO_CLIENT = "to_client"
    STDERR = "stderr"


class Kind(StrEnum):
    """
    What a line, or a member of a batch array, is. Source: JSON-RPC 2.0 sections 4 to 6.

    `batch` is the line that holds an array; its members follow as events of their own with index 1, 2, ….
    `invalid` is JSON that is no JSON-RPC message; `not_json` is everything else, empty lines included.
    """

    REQUEST = "request"
    RESPONSE = "response"
    ERROR = "error"
    NOTIFICATION = "notification"
    BATCH = "batch"
    INVALID = "invalid"
    NOT_JSON = "not_json"


class Outcome(StrEnum):
    """
    How an exchange ended; only answers carry one.

    `tool_error` is a result with `isError: true`; `rpc_error` a JSON-RPC error; `input_required` asks the
    client for more (2026-07-28) and is no end; `probe` is an error answer to `server/discover`, by which a
    client learns the protocol era, and no failure.
    """

    OK = "ok"
    TOOL_ERROR = "tool_error"
    RPC_ERROR = "rpc_error"
    INPUT_REQUIRED = "input_required"
    PROBE = "probe"
