// How long the SDK takes to stop servers: {"sdk"} on the first line, then one list of {"words","env"} per line.
// All of a line are started, waited for until each has written something, and closed; the answer is milliseconds.

import { createInterface } from "node:readline";

import { openSdk } from "./sdk.mjs";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const { sdk: version } = JSON.parse((await lines.next()).value);
const sdk = await openSdk(version);
for await (const line of lines) {
  const taken = await Promise.all(JSON.parse(line).map(stop));
  process.stdout.write(`${JSON.stringify(taken)}\n`);
}
process.exit(0);

async function stop({ words, env }) {
  const transport = sdk.newTransport({ command: words[0], args: words.slice(1), env, stderr: "ignore" });
  transport.onerror = () => {}; // the probe's first word is no message
  await transport.start();
  await new Promise((resolve) => transport._process.stdout.once("data", resolve));
  const start = performance.now();
  await transport.close();
  return performance.now() - start;
}
