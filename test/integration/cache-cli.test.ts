import { execFile } from "node:child_process";
import { join } from "node:path";
import { promisify } from "node:util";
import { FakeWorker } from "@atelier/gateway/testing";
import { allReady, startGateway } from "@atelier/gateway/testing/start-gateway";
import { describe, expect, it } from "vitest";
import { atEnd, running } from "../support/ends.ts";

const main = join(import.meta.dirname, "../../services/cli/src/main.ts");

describe("atelier cache", () => {
  it("tells how much is kept, and purges what is named", async () => {
    const { url } = await gatewayWithResults(["a red mug", "国潮风T恤"]);
    expect(JSON.parse((await atelier(url, "stats", "--json")).stdout).memory.results).toBe(2);
    const purged = await atelier(url, "purge", "--prompt-prefix", "国潮");
    expect(purged.stdout).toContain("1 at hand");
    expect((await atelier(url, "stats")).stdout).toMatch(/^at hand · 内存: 1 results, 0\.0 of 256\.0 MiB\n$/);
    expect(JSON.parse((await atelier(url, "purge", "--all", "--json")).stdout)).toEqual({
      in_memory: 1,
      in_redis: null,
    });
  });

  it("says in the server's words what is wrong with a purge that names nothing, or too much", async () => {
    const { url } = await gatewayWithResults([]);
    await expect(atelier(url, "purge")).rejects.toMatchObject({
      code: 1,
      stderr: expect.stringContaining("nothing is named to purge"),
    });
    await expect(atelier(url, "purge", "--all", "--model", "m")).rejects.toMatchObject({
      stderr: expect.stringContaining("leave one of them out"),
    });
  });
});

async function gatewayWithResults(prompts: readonly string[]): Promise<{ url: string }> {
  const worker = await running(FakeWorker.start());
  const gateway = await startGateway([worker.address], { ATELIER_CACHE_SCOPE: "tenant", ATELIER_CACHE_MIN_ASKS: "1" });
  atEnd(() => gateway.stop());
  await gateway.until(allReady);
  for (const prompt of prompts) {
    await (
      await fetch(`${gateway.url}/generate`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ prompt, seed: 1 }),
      })
    ).arrayBuffer();
  }
  return gateway;
}

function atelier(url: string, ...args: readonly string[]): Promise<{ stdout: string; stderr: string }> {
  return promisify(execFile)(process.execPath, [main, "cache", ...args, "--url", url], {
    env: { PATH: process.env["PATH"] },
  });
}
