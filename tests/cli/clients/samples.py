"""
What people have in the files of their MCP clients: one sample for each client, as its users write it.

`PLACES` says where each stands below a home on Linux; the other platforms' places come from the table itself.
SECRET stands wherever a secret may stand: it must never be shown.
"""

from dataclasses import dataclass

SECRET = "s3cr3t-Zq9xW2vB7nM4kL1p"  # noqa: S105 - not one

CLAUDE_DESKTOP = """\
{
  "globalShortcut": "Ctrl+Space",
  "mcpServers": {
    "filesystem": {
      "command": "npx",
      "args": [
        "-y",
        "@modelcontextprotocol/server-filesystem",
        "/home/ann/Übung/文档"
      ]
    },
    "github": {
      "command": "npx",
      "args": ["-y", "@modelcontextprotocol/server-github"],
      "env": {
        "GITHUB_PERSONAL_ACCESS_TOKEN": "SECRET"
      }
    }
  }
}
"""
CLAUDE_CODE = """\
{
  "numStartups": 271,
  "oauthAccount": {"accessToken": "SECRET"},
  "mcpServers": {
    "sentry": {"type": "http", "url": "https://mcp.sentry.dev/mcp?token=SECRET"},
    "memory": {"type": "stdio", "command": "uvx", "args": ["mcp-memory"], "env": {}}
  },
  "projects": {
    "/home/ann/shop": {
      "allowedTools": [],
      "history": [{"display": "use \\u2028 SECRET", "pastedContents": {}}],
      "mcpServers": {
        "db": {
          "type": "stdio",
          "command": "npx",
          "args": ["-y", "db-mcp", "postgresql://ann:SECRET@localhost:5432/shop"]
        }
      }
    },
    "/home/ann/blog": {"mcpServers": {"db": {"command": "./bin/db", "args": ["--api-key", "SECRET"]}}},
    "/home/ann/empty": {"mcpServers": {}}
  }
}"""
PROJECT = """{"mcpServers":{"tools":{"command":"npx","args":["tools"],"env":{"TOKEN":"${TOKEN:-SECRET}"}}}}"""
CURSOR = """\
{
\t"mcpServers": {
\t\t"context7": { "command" : "npx" , "args" : [ "-y" , "@upstash/context7-mcp" ] , "disabled" : false },
\t\t"linear": { "url": "https://mcp.linear.app/sse", "headers": { "Authorization": "Bearer SECRET" } },
\t\t"py": { "command": "${workspaceFolder}/.venv/bin/python", "args": ["-m", "srv"], "envFile": ".env" }
\t}
}
"""
VSCODE = """\
// VS Code: servers and what it asks for
{
  "inputs": [
    { "type": "promptString", "id": "key", "description": "API key", "password": true, },
  ],
  "servers": {
    /* the one that
       everybody has */
    "playwright": {
      "type": "stdio",
      "command": "npx", // not a global install
      "args": [
        // "--headless", "--token=SECRET",
        "@playwright/mcp@latest", // latest
      ],
      "env": { "KEY": "${input:key}", "OTHER": "SECRET", },
    },
    "fetch": { "type": "stdio", "command": "uvx", "args": ["mcp-server-fetch"] },
    "gh": { "type": "http", "url": "https://api.githubcopilot.com/mcp/" },
  },
}
"""
VSCODE_SETTINGS = """\
{
  "editor.fontSize": 14, // bigger
  "mcp": {
    "inputs": [],
    "servers": { "old": { "command": "node", "args": ["old.js"], }, },
  },
}
"""
COPILOT = """\
{
    "mcpServers": {
        "pw": {"type": "local", "command": "npx", "args": ["@playwright/mcp"], "tools": ["*"]}
    }
}
"""
WINDSURF = """{
    "mcpServers": {
        "git": {"command": "uvx", "args": ["mcp-server-git"], "env": {"A": "SECRET"}},
        "figma": {"serverUrl": "https://mcp.figma.com/mcp", "headers": {"X-Key": "SECRET"}}
    }
}
"""
ZED = """\
// Zed settings
//
// For information on how to configure Zed, see the Zed documentation
{
  "theme": { "mode": "system", "light": "One Light" },
  "context_servers": {
    "kagi": {
      "source": "custom",
      "enabled": true,
      "command": "uvx",
      "args": ["kagimcp"],
      "env": { "KAGI_API_KEY": "SECRET" },
    },
    "older": {
      "command": { "path": "npx", "args": ["-y", "older-mcp"], "env": { "K": "SECRET" } },
      "settings": {},
    },
    "ext": { "source": "extension", "settings": { "token": "SECRET" } },
  },
  "vim_mode": true,
}
"""
CLINE = """\
{
  "mcpServers": {
    "a b": {
      "autoApprove": ["x"],
      "disabled": true,
      "timeout": 60,
      "type": "stdio",
      "command": "node",
      "args": ["/home/ann/a b/index.js"],
      "env": {"K": "SECRET"}
    }
  }
}
"""
CONTINUE = """\
%YAML 1.2
---
name: Local Assistant   # mine
version: 1.0.0
models:
  - name: Sonnet
    apiKey: SECRET
mcpServers:
  - name: sqlite
    command: npx
    args:
      - -y
      - mcp-sqlite   # the db
      - /home/ann/a.db
    env:
      KEY: SECRET
  - command: "uvx"
    name: bare
  - name: remote
    type: streamable-http
    url: https://x.example/mcp
  - {name: flow, command: uvx, args: [mcp-flow, '--x']}
"""
CONTINUE_FILE = """\
name: Playwright
version: 0.0.1
schema: v1
mcpServers:
- name: Browser search
  command: npx
  args:
  - "@playwright/mcp@latest"
"""
GEMINI = """\
{
  "theme": "Default",
  "mcpServers": {
    "pyTools": {
      "command": "node",
      "args": ["-m", "my_mcp_server", "--port", "8080"],
      "cwd": "./mcp-servers/python",
      "timeout": 15000,
      "env": {"DATABASE_URL": "$DB_CONNECTION_STRING", "K": "SECRET"}
    },
    "remote": {"httpUrl": "https://x.example/mcp", "headers": {"Authorization": "Bearer SECRET"}}
  }
}
"""
CODEX = """\
model = "gpt-5"   # best
approval_policy = "on-request"
[projects."/home/ann/shop"]
trust_level = "trusted"

[mcp_servers.docs]  # the docs
command = "npx" # from node
  args = [
  "-y",  # yes
  'docs-mcp', # name
]
startup_timeout_sec = 20
[mcp_servers.docs.env]
"API_KEY" = "SECRET"

[mcp_servers."with space"]
\tcommand = 'uvx'
env = { TOKEN = "SECRET", B = "2" }

[mcp_servers.remote]
url = "https://x.example/mcp"
bearer_token_env_var = "TOKEN"

[mcp_servers]
inline = { command = "node", args = ["a.js"], env = { K = "SECRET" } }
dotted.command = "uvx"
dotted.args = []
dotted.env.K = "SECRET"

[tui]
when = 2026-01-02T03:04:05Z
text = \"\"\"
[mcp_servers.not_one]
command = "x"\"\"\""""
GOOSE = """\
GOOSE_PROVIDER: anthropic
extensions:
  developer:
    bundled: true
    enabled: true
    name: developer
    type: builtin
  github:
    args:
    - -y
    - '@modelcontextprotocol/server-github'
    bundled: null
    cmd: npx
    description: "GitHub — issues"
    enabled: true
    env_keys:
    - GITHUB_PERSONAL_ACCESS_TOKEN
    envs:
      K: SECRET
    name: github
    timeout: 300
    type: stdio
  # one without arguments
  bare:
    cmd: uvx # bare
    enabled: true
    type: stdio
  none:
    args: []
    cmd: uvx
    type: stdio
  sse:
    type: sse
    uri: http://localhost:1/sse
"""
OPENCODE = """\
{
  "$schema": "https://opencode.ai/config.json",
  // servers
  "mcp": {
    "everything": {
      "type": "local",
      "command": ["npx", "-y", "@modelcontextprotocol/server-everything"],
      "enabled": true,
      "environment": { "K": "SECRET" },
    },
    "jira": { "type": "remote", "url": "https://jira.example.com/mcp", "headers": { "A": "SECRET" } },
    "multi": {
      "type": "local",
      "command": [
        "uvx", // runner
        "multi",
      ],
    },
  },
}
"""
CRUSH = """{
  "$schema": "https://charm.land/crush.json",
  "mcp": {
    "fs": {"type": "stdio", "command": "node", "args": ["fs.js"], "env": {"A": "SECRET"}},
    "gh": {"type": "http", "url": "https://x.example/", "headers": {"Authorization": "SECRET"}}
  }
}
"""
AMP = """{"amp.theme": "dark", "amp.mcpServers": {"pw": {"command": "npx", "args": ["-y", "pw"]}}}"""
VIBE = """\
active_model = "devstral"

[[mcp_servers]]
name = "fetch_server"
transport = "stdio"
command = "uvx"
args = ["mcp-server-fetch"]

[[mcp_servers]]
name = "http"
transport = "http"
url = "http://localhost:8000"
headers = { Authorization = "Bearer SECRET" }

[[mcp_servers]]
name = "bare"
command = "uvx"
"""
ESCAPES = """{"mcpServers": {"\\u0061\\"b": {"command": "np\\u0078", "args": ["\\ud83d\\ude00", "a\\/b"], "env": null},
 "nul": {"args": null, "command": "npx"}, "bare": {"command": "npx"},
 "gap": {"command": "npx", "args": [ ]}, "lines": {"command": "npx", "args": [
 ]}}}"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A file below a home. servers: how many of its servers have a command."""

    client: str
    place: str
    text: str
    servers: int

    @property
    def raw(self) -> bytes:
        """The file's bytes, with a secret in them."""
        return self.text.replace("SECRET", SECRET).encode()


CLINE_FOLDER = ".config/Code/User/globalStorage/saoudrizwan.claude-dev/settings"
ROO_FOLDER = ".config/Cursor/User/globalStorage/rooveterinaryinc.roo-cline/settings"
SAMPLES = (
    Sample("claude-desktop", ".config/Claude/claude_desktop_config.json", CLAUDE_DESKTOP, 2),
    Sample("claude-code", ".claude.json", CLAUDE_CODE, 3),
    Sample("claude-code", "shop/.mcp.json", PROJECT, 1),
    Sample("cursor", ".cursor/mcp.json", CURSOR, 2),
    Sample("cursor", "shop/.cursor/mcp.json", ESCAPES, 5),
    Sample("vscode", ".config/Code/User/mcp.json", VSCODE, 2),
    Sample("vscode", ".config/Code - Insiders/User/mcp.json", VSCODE, 2),
    Sample("vscode", ".config/Code/User/settings.json", VSCODE_SETTINGS, 1),
    Sample("vscode", "shop/.vscode/mcp.json", VSCODE, 2),
    Sample("copilot-cli", ".copilot/mcp-config.json", COPILOT, 1),
    Sample("windsurf", ".codeium/windsurf/mcp_config.json", WINDSURF, 1),
    Sample("zed", ".config/zed/settings.json", ZED, 2),
    Sample("cline", f"{CLINE_FOLDER}/cline_mcp_settings.json", CLINE, 1),
    Sample("roo", f"{ROO_FOLDER}/mcp_settings.json", CLINE, 1),
    Sample("continue", ".continue/config.yaml", CONTINUE, 3),
    Sample("continue", "shop/.continue/mcpServers/pw.yaml", CONTINUE_FILE, 1),
    Sample("continue", ".continue/mcpServers/copied.json", CLAUDE_DESKTOP, 2),
    Sample("gemini-cli", ".gemini/settings.json", GEMINI, 1),
    Sample("antigravity", ".gemini/antigravity/mcp_config.json", WINDSURF, 1),
    Sample("codex", ".codex/config.toml", CODEX, 4),
    Sample("goose", ".config/goose/config.yaml", GOOSE, 3),
    Sample("opencode", ".config/opencode/opencode.jsonc", OPENCODE, 2),
    Sample("crush", ".config/crush/crush.json", CRUSH, 1),
    Sample("lm-studio", ".lmstudio/mcp.json", CURSOR, 2),
    Sample("junie", ".junie/mcp/mcp.json", CLAUDE_DESKTOP, 2),
    Sample("amazon-q", ".aws/amazonq/cli-agents/default.json", CLAUDE_DESKTOP, 2),
    Sample("kiro", ".kiro/settings/mcp.json", CURSOR, 2),
    Sample("amp", ".config/amp/settings.json", AMP, 1),
    Sample("trae", ".config/Trae/User/mcp.json", CLINE, 1),
    Sample("qoder", ".qoder/mcp.json", CLINE, 1),
    Sample("factory", ".factory/mcp.json", CLINE, 1),
    Sample("kimi", ".kimi/mcp.json", CLINE, 1),
    Sample("vibe", ".vibe/config.toml", VIBE, 2),
)
