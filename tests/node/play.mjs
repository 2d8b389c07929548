// Plays scripted sessions: {"sdk","sessions":[{"words","env","cwd","mode","steps"}]} on stdin, what was seen on stdout.
// All sessions run at once. What crosses is recorded where Node hands it to the SDK, so nothing stands in between.

import { AsyncLocalStorage } from "node:async_hooks";
import childProcess from "node:child_process";
import { text } from "node:stream/consumers";

import { openSdk } from "./sdk.mjs";

globalThis.console = new console.Console(process.stderr); // the SDK's remarks; stdout is for the answer
const spawnedBySession = new AsyncLocalStorage();

recordSpawns();
const { sdk: version, sessions } = JSON.parse(await text(process.stdin));
const sdk = await openSdk(version);
const played = await Promise.all(sessions.map((session) => spawnedBySession.run([], () => play(session))));
process.stdout.write(JSON.stringify(played), () => process.exit(0));

/** One session: its steps' results, and each process that the SDK started for it. */
async function play({ words, env, cwd, mode, steps }) {
  const client = sdk.newClient(mode);
  await client.connect(sdk.newTransport({ command: words[0], args: words.slice(1), env, cwd, stderr: "ignore" }));
  const results = [client.getServerVersion(), client.getServerCapabilities(), client.getInstructions() ?? null];
  for (const step of steps) results.push(await take(client, step));
  await client.close();
  return { results, spawned: await Promise.all(spawnedBySession.getStore()) };
}

/** The result of one step, or its error. Progress is asked for but not compared: the SDK drops what comes late. */
async function take(client, { method, params }) {
  try {
    return { result: await call(client, method, params, { onprogress: () => {} }) };
  } catch (error) {
    return { error: error.message, code: error.code ?? null };
  }
}

function call(client, method, params, options) {
  switch (method) {
    case "tools/call": return sdk.callTool(client, params, options);
    case "tools/list": return client.listTools();
    case "resources/list": return client.listResources();
    case "resources/templates/list": return client.listResourceTemplates();
    case "resources/read": return client.readResource(params);
    case "prompts/list": return client.listPrompts();
    case "prompts/get": return client.getPrompt(params);
    case "completion/complete": return client.complete(params);
    case "logging/setLevel": return client.setLoggingLevel(params.level);
    case "ping": return client.ping();
    default: throw new Error(`no such step: ${method}`);
  }
}

/** From now on each child process is recorded with its session: {sent, received (base64), status, signal}. */
function recordSpawns() {
  const spawn = childProcess.spawn;
  childProcess.spawn = (...words) => {
    const child = spawn(...words);
    const sent = [], received = [];
    const write = child.stdin.write.bind(child.stdin);
    child.stdin.write = (chunk, ...rest) => {
      sent.push(Buffer.from(chunk));
      return write(chunk, ...rest);
    };
    child.stdout.on("data", (chunk) => received.push(chunk));
    spawnedBySession.getStore().push(new Promise((resolve) => {
      child.on("close", (status, signal) => {
        const [sentBytes, receivedBytes] = [sent, received].map((parts) => Buffer.concat(parts).toString("base64"));
        resolve({ sent: sentBytes, received: receivedBytes, status, signal });
      });
    }));
    return child;
  };
}
