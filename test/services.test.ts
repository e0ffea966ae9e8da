import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { Redis } from "ioredis";
import { describe, expect, it } from "vitest";

const MAIN = join(import.meta.dirname, "../scripts/services/main.ts");

describe("npm run services", () => {
  it("starts Redis, prints its address, and ends it on Ctrl-C", async () => {
    const { child, output, exited } = services("--only", "redis", "--redis-port", "0");
    while (!/Ctrl-C stops them/.test(output())) await Promise.race([once(child.stdout, "data"), exited]);
    const url = /Redis at (redis:\/\/127\.0\.0\.1:\d+)/.exec(output())![1]!;
    const client = new Redis(url, { retryStrategy: () => null });
    expect(await client.ping()).toBe("PONG");
    const lost = once(client, "close");
    child.kill("SIGINT");
    expect(await exited).toBe(0);
    await lost;
    const again = new Redis(url, { lazyConnect: true, retryStrategy: () => null });
    again.on("error", () => {}); // what `connect` rejects with
    await expect(again.connect()).rejects.toThrow(/closed|ECONNREFUSED/);
  });

  it("says which port is taken", async () => {
    const first = services("--only", "redis", "--redis-port", "0");
    while (!/Redis at/.test(first.output())) await Promise.race([once(first.child.stdout, "data"), first.exited]);
    const port = /127\.0\.0\.1:(\d+)/.exec(first.output())![1]!;
    const second = services("--only", "redis", "--redis-port", port);
    expect(await second.exited).toBe(1);
    expect(second.output()).toContain(`port ${port} on 127.0.0.1 is taken`);
    first.child.kill("SIGINT");
    await first.exited;
  });

  it("prints its options, and what it did not understand", async () => {
    const help = services("--help");
    expect(await help.exited).toBe(0);
    expect(help.output()).toContain("--redis-port <n>");
    const odd = services("--port", "1");
    expect(await odd.exited).toBe(2);
    expect(odd.output()).toContain("--port");
    const far = services("--redis-port", "70000");
    expect(await far.exited).toBe(2);
    expect(far.output()).toContain("--redis-port 70000: it must be a whole number from 0 to 65535");
  });
});

function services(...args: readonly string[]) {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ["ignore", "pipe", "pipe"] });
  let output = "";
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (text: string) => {
      output += text;
    });
  }
  const exited = new Promise<number | null>((resolve) => child.once("close", resolve));
  return { child, exited, output: () => output };
}
