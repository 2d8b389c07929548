"""
The MCP clients that Kilometers knows, and where each keeps its servers. Data.

A *place* is a path that begins with a root in braces (`{home}`, see sources.py) and may hold `*`. Places that a client
does not use on some platform do no harm: a file that is not there is passed over, and so is one without the key.
"""

from dataclasses import dataclass
from enum import StrEnum

from kmctl.clients.entries import KeyPath

MCP_SERVERS: tuple[KeyPath, ...] = (("mcpServers",),)
SERVERS: tuple[KeyPath, ...] = (("servers",),)
IN_SETTINGS: tuple[KeyPath, ...] = (("mcp", "servers"), ("mcp.servers",))
MCP: tuple[KeyPath, ...] = (("mcp",),)
CLINE = "User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"
ROO = "User/globalStorage/rooveterinaryinc.roo-cline/settings/mcp_settings.json"
MSIX = "{local}/Packages/Claude_pzs8sxrjxfjjc/LocalCache/Roaming/Claude/claude_desktop_config.json"
QUIT = "quit it and open it again"
RELOAD = "reload its windows"
SESSIONS = "start new sessions"


class Platform(StrEnum):
    """The three systems whose paths differ."""

    LINUX = "linux"
    MACOS = "macos"
    WINDOWS = "windows"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file may be, and the keys that lead to servers in it."""

    path: str
    keys: tuple[KeyPath, ...]

    @property
    def shared(self) -> bool:
        """Whether it belongs to a project."""
        return self.path.startswith("{project}")


@dataclass(frozen=True, slots=True)
class Client:
    """One MCP client. id: for `--client`; restart: what makes it read its file again."""

    id: str
    title: str
    restart: str
    places: tuple[Place, ...]


def places(keys: tuple[KeyPath, ...], *paths: str) -> tuple[Place, ...]:
    """Places that have the same keys."""
    return tuple(Place(path, keys) for path in paths)


CLIENTS: tuple[Client, ...] = (
    Client(
        "claude-desktop",
        "Claude Desktop",
        QUIT,
        places(
            MCP_SERVERS,
            "{apps}/Claude/claude_desktop_config.json",
            "{apps}/claude/claude_desktop_config.json",
            MSIX,
        ),
    ),
    Client(
        "claude-code",
        "Claude Code",
        SESSIONS,
        (
            *places((("mcpServers",), ("projects", "*", "mcpServers")), "{CLAUDE_CONFIG_DIR}/.claude.json"),
            *places((("mcpServers",), ("projects", "*", "mcpServers")), "{home}/.claude.json"),
            *places(MCP_SERVERS, "{project}/.mcp.json"),
        ),
    ),
    Client("cursor", "Cursor", RELOAD, places(MCP_SERVERS, "{home}/.cursor/mcp.json", "{project}/.cursor/mcp.json")),
    Client(
        "vscode",
        "VS Code",
        RELOAD,
        (
            *places(
                SERVERS,
                "{apps}/Code/User/mcp.json",
                "{apps}/Code/User/profiles/*/mcp.json",
                "{apps}/Code - Insiders/User/mcp.json",
                "{apps}/Code - Insiders/User/profiles/*/mcp.json",
                "{apps}/VSCodium/User/mcp.json",
                "{home}/.vscode-server/data/User/mcp.json",
                "{project}/.vscode/mcp.json",
            ),
            *places(
                IN_SETTINGS,
                "{apps}/Code/User/settings.json",
                "{apps}/Code - Insiders/User/settings.json",
                "{apps}/VSCodium/User/settings.json",
                "{project}/.vscode/settings.json",
            ),
        ),
    ),
    Client(
        "copilot-cli",
        "Copilot CLI",
        SESSIONS,
        places(MCP_SERVERS, "{COPILOT_HOME}/mcp-config.json", "{home}/.copilot/mcp-config.json"),
    ),
    Client(
        "windsurf",
        "Windsurf",
        RELOAD,
        places(MCP_SERVERS, "{home}/.codeium/windsurf/mcp_config.json", "{home}/.codeium/mcp_config.json"),
    ),
    Client(
        "zed",
        "Zed",
        QUIT,
        places(
            (("context_servers",),),
            "{config}/zed/settings.json",
            "{apps}/Zed/settings.json",
            "{project}/.zed/settings.json",
        ),
    ),
    Client(
        "cline",
        "Cline",
        RELOAD,
        places(
            MCP_SERVERS,
            f"{{apps}}/*/{CLINE}",
            f"{{home}}/.vscode-server/data/{CLINE}",
            "{home}/.cline/data/settings/cline_mcp_settings.json",
        ),
    ),
    Client(
        "roo",
        "Roo Code",
        RELOAD,
        places(MCP_SERVERS, f"{{apps}}/*/{ROO}", f"{{home}}/.vscode-server/data/{ROO}", "{project}/.roo/mcp.json"),
    ),
    Client(
        "continue",
        "Continue",
        RELOAD,
        places(
            MCP_SERVERS,
            "{home}/.continue/config.yaml",
            "{home}/.continue/mcpServers/*.yaml",
            "{home}/.continue/mcpServers/*.yml",
            "{home}/.continue/mcpServers/*.json",
            "{project}/.continue/mcpServers/*.yaml",
            "{project}/.continue/mcpServers/*.yml",
            "{project}/.continue/mcpServers/*.json",
        ),
    ),
    Client(
        "gemini-cli",
        "Gemini CLI",
        SESSIONS,
        places(MCP_SERVERS, "{home}/.gemini/settings.json", "{project}/.gemini/settings.json"),
    ),
    Client("antigravity", "Antigravity", QUIT, places(MCP_SERVERS, "{home}/.gemini/antigravity/mcp_config.json")),
    Client(
        "codex",
        "Codex CLI",
        SESSIONS,
        places(
            (("mcp_servers",),), "{CODEX_HOME}/config.toml", "{home}/.codex/config.toml", "{project}/.codex/config.toml"
        ),
    ),
    Client(
        "goose",
        "Goose",
        SESSIONS,
        places((("extensions",),), "{config}/goose/config.yaml", "{apps}/Block/goose/config/config.yaml"),
    ),
    Client(
        "opencode",
        "opencode",
        SESSIONS,
        places(
            MCP,
            "{config}/opencode/opencode.jsonc",
            "{config}/opencode/opencode.json",
            "{local}/opencode/opencode.jsonc",
            "{local}/opencode/opencode.json",
            "{project}/opencode.jsonc",
            "{project}/opencode.json",
        ),
    ),
    Client(
        "crush",
        "Crush",
        SESSIONS,
        places(
            MCP,
            "{config}/crush/crush.json",
            "{local}/crush/crush.json",
            "{project}/.crush.json",
            "{project}/crush.json",
        ),
    ),
    Client(
        "lm-studio",
        "LM Studio",
        QUIT,
        places(MCP_SERVERS, "{home}/.lmstudio/mcp.json", "{home}/.cache/lm-studio/mcp.json"),
    ),
    Client(
        "junie",
        "JetBrains Junie",
        QUIT,
        places(MCP_SERVERS, "{home}/.junie/mcp/mcp.json", "{project}/.junie/mcp/mcp.json"),
    ),
    Client(
        "amazon-q",
        "Amazon Q",
        SESSIONS,
        places(
            MCP_SERVERS,
            "{home}/.aws/amazonq/mcp.json",
            "{home}/.aws/amazonq/cli-agents/*.json",
            "{home}/.aws/amazonq/agents/*.json",
            "{project}/.amazonq/mcp.json",
        ),
    ),
    Client(
        "kiro",
        "Kiro",
        RELOAD,
        places(MCP_SERVERS, "{home}/.kiro/settings/mcp.json", "{project}/.kiro/settings/mcp.json"),
    ),
    Client("amp", "Amp", SESSIONS, places((("amp.mcpServers",),), "{config}/amp/settings.json")),
    Client("trae", "Trae", RELOAD, places(MCP_SERVERS, "{apps}/Trae/User/mcp.json", "{project}/.trae/mcp.json")),
    Client("qoder", "Qoder", RELOAD, places(MCP_SERVERS, "{home}/.qoder/mcp.json")),
    Client(
        "factory", "Factory", SESSIONS, places(MCP_SERVERS, "{home}/.factory/mcp.json", "{project}/.factory/mcp.json")
    ),
    Client("kimi", "Kimi CLI", SESSIONS, places(MCP_SERVERS, "{home}/.kimi/mcp.json")),
    Client("vibe", "Mistral Vibe", SESSIONS, places((("mcp_servers",),), "{home}/.vibe/config.toml")),
)
BY_ID = {client.id: client for client in CLIENTS}
