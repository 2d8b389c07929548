"""The entry point. It imports the rest inside `main`, so that even an early Ctrl-C ends quietly."""

import sys

INTERRUPTED = 130
"""128 + SIGINT: what a shell reports for a command that Ctrl-C ended."""


def main() -> None:
    """Run kmctl with the process's arguments and exit with its code."""
    try:
        from kmctl.cli import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    main()
