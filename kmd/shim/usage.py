"""What km says about itself. Apart from kmd.shim.start, which has no time to read it each time."""

from importlib.metadata import PackageNotFoundError, version

USAGE = """\
usage: km [--home DIR] [--name NAME] [--stderr] [--strict] [--] COMMAND [ARG ...]

Start an MCP server and capture what goes through it. The server does not notice.

  --name NAME   what to call this server in status and statistics (default: COMMAND's file name)
  --home DIR    where kmd lives, if it was started with --home (default: KM_HOME, else ~/.kilometers)
  --stderr      capture the server's stderr, too; it is then a pipe, no longer the client's own file
  --strict      audit: everything is on disk before it is passed on; what cannot be recorded does not
                pass, and ends the session with a line on stderr
  --version     print the version
  --help        print this

In an MCP client's configuration, put km in front of the command:
  {"command": "km", "args": ["--name", "time", "--", "mcp-server-time"]}
"""


def version_line() -> str:
    """The installed version."""
    try:
        return f"km {version('kilometers')}\n"
    except PackageNotFoundError:
        return "km (not installed as a package)\n"
