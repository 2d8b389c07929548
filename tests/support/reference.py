"""
docs/configuration.md, made from the table of settings, so that it cannot drift from what kmd checks.

`python -m tests.support.reference` writes it anew; tests/daemon/test_config.py compares.
"""

from pathlib import Path

import tomli_w

from kmd.config import SETTINGS, TYPE_NAMES, Setting

REFERENCE_FILE = Path(__file__).parents[2] / "docs" / "configuration.md"

REFERENCE_HEAD = """\
# Configuration

This page is made from the table of settings in `kmd/config.py` by `python -m tests.support.reference`; a test
holds the two together.

`kmctl init` writes `config.toml` with every setting in it as a comment. `kmctl config` shows where the file
is, each value, and where it comes from: the environment, else the file, else the default; `kmctl config set` changes
one. kmd reads the file when it starts, when kmctl has changed it, and on SIGHUP. A misspelt name is an error, never
ignored, and names its line.

With `--home DIR` (else `KM_HOME`) the file is `DIR/config.toml`; without, it is in the platform's place for
configuration.

## Settings
"""

REFERENCE_TAIL = """\
## Destinations

Each `[[destinations]]` table is a km-server to sync to. Without one, everything stays on this machine.

```toml
[[destinations]]
name = "default"
url = "https://km.example.com"
key = "km_…"
```

- `name`: what `kmctl status` calls it; each has its own, `default` when left out
- `url`: the server's root, `http://` or `https://`, without user, password, query or fragment
- `key`: the API key that `km-server keys create` printed; this file is readable by you alone
- `key_from`: where the key is instead: `keyring` (the operating system's) or `file` (`keys.toml` beside this file,
  readable by you alone); `kmctl login` puts it there and writes this line
- `ca_file`: the whole path of a PEM file with the authorities that this destination's certificate may come from, and no
  others: for a company's own authority or a self-signed certificate; `kmctl login --ca-file FILE` writes it

Where a destination has no `ca_file`, kmd and kmctl ask the public authorities, or those in the PEM file that the
environment variable `SSL_CERT_FILE` names (in the folder that `SSL_CERT_DIR` names), and only those: with the public
ones beside your own where they are needed too. `kmctl service install` hands
the variable on to kmd. The file is read again after a refusal. Until a certificate is right nothing is sent and nothing
is lost; `kmctl status` and `kmctl doctor` say what is wrong with it. There is no setting to trust anybody.
"""


def render_reference() -> str:
    """docs/configuration.md: every setting with what it means, its default, its range and its variable."""
    lines = [REFERENCE_HEAD]
    for setting in SETTINGS:
        default = tomli_w.dumps({"x": setting.default}).removeprefix("x = ").strip()
        lines += [
            f"### `{setting.name}`",
            "",
            setting.help,
            "",
            f"- default: `{default}`",
            f"- value: {describe_range(setting)}",
            f"- environment: `{setting.variable}`",
            "",
        ]
    return "\n".join([*lines, REFERENCE_TAIL])


def describe_range(setting: Setting) -> str:
    """What a setting may be, in words."""
    if setting.choices:
        return "one of " + ", ".join(f"`{choice}`" for choice in setting.choices)
    if type(setting.default) is int:
        return f"a whole number, {setting.least} to {setting.most}"
    return TYPE_NAMES[type(setting.default)]


if __name__ == "__main__":
    REFERENCE_FILE.write_text(render_reference(), encoding="utf-8")
