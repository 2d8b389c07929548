// The two official TypeScript clients behind one face: `openSdk("v1")` and `openSdk("v2")`.

const CLIENT = { name: "transparency-suite", version: "1.0.0" };
const CAPABILITIES = { sampling: {}, elicitation: {}, roots: {} };

/** What the client answers to the server's own requests. */
const ANSWERS = {
  "sampling/createMessage": () => ({
    model: "none",
    role: "assistant",
    content: { type: "text", text: "sampled: ä€" },
    stopReason: "endTurn",
  }),
  "elicitation/create": () => ({ action: "decline" }),
  "roots/list": () => ({ roots: [{ uri: "file:///nowhere", name: "nowhere" }] }),
};

/** The SDK's constructors: newClient(mode), newTransport(parameters), callTool(client, params, options). */
export async function openSdk(version) {
  return version === "v1" ? openV1() : openV2();
}

async function openV1() {
  const { Client } = await import("@modelcontextprotocol/sdk/client/index.js");
  const { StdioClientTransport } = await import("@modelcontextprotocol/sdk/client/stdio.js");
  const types = await import("@modelcontextprotocol/sdk/types.js");
  const schemas = {
    "sampling/createMessage": types.CreateMessageRequestSchema,
    "elicitation/create": types.ElicitRequestSchema,
    "roots/list": types.ListRootsRequestSchema,
  };
  return {
    newClient: () => {
      const client = new Client(CLIENT, { capabilities: CAPABILITIES });
      for (const [method, answer] of Object.entries(ANSWERS)) client.setRequestHandler(schemas[method], answer);
      return client;
    },
    newTransport: (parameters) => new StdioClientTransport(parameters),
    callTool: (client, params, options) => client.callTool(params, undefined, options),
  };
}

async function openV2() {
  const { Client } = await import("@modelcontextprotocol/client");
  const { StdioClientTransport } = await import("@modelcontextprotocol/client/stdio");
  return {
    newClient: (mode) => {
      const client = new Client(CLIENT, { capabilities: CAPABILITIES, versionNegotiation: { mode } });
      for (const [method, answer] of Object.entries(ANSWERS)) client.setRequestHandler(method, answer);
      return client;
    },
    newTransport: (parameters) => new StdioClientTransport(parameters),
    callTool: (client, params, options) => client.callTool(params, options),
  };
}
