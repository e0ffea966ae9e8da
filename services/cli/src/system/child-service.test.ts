import { readFileSync } from "node:fs";
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { ChildService } from "./child-service.ts";

it("lets a service keep its compiled code, in a folder that the environment may name", async () => {
  const folder = await mkdtemp(join(tmpdir(), "atelier-compiled-"));
  try {
    const entry = join(folder, "main.ts");
    await writeFile(entry, 'process.send?.({ type: "listening", address: String(process.env.NODE_COMPILE_CACHE) });');
    const byDefault = new ChildService({ name: "worker", entry, env: {} });
    expect(await byDefault.listening).toMatch(/node_modules\/\.cache\/atelier-compiled$/);
    await byDefault.ended;

    const cache = join(folder, "cache");
    const named = new ChildService({ name: "worker", entry, env: { NODE_COMPILE_CACHE: cache } });
    expect(await named.listening).toBe(cache);
    await named.ended;
    expect(await readdir(cache)).toHaveLength(1); // one folder for each version of Node
  } finally {
    await rm(folder, { recursive: true });
  }
});

it("takes what a service had started along when that is killed, so that a successor finds its ports free", async () => {
  const folder = await mkdtemp(join(tmpdir(), "atelier-child-"));
  try {
    const entry = join(folder, "main.ts");
    const server = "setInterval(() => {}, 1000)";
    const start = `import { spawn } from "node:child_process";
      const server = spawn(process.execPath, ["-e", ${JSON.stringify(server)}]);
      process.send?.({ type: "listening", address: String(server.pid) });`;
    await writeFile(entry, start);
    const service = new ChildService({ name: "nats", entry, env: {} });
    const pid = Number(await service.listening);
    expect(isAlive(pid)).toBe(true);
    process.kill(service.pid!, "SIGKILL");
    await service.ended;
    await expect.poll(() => isAlive(pid), { timeout: 5_000 }).toBe(false);
  } finally {
    await rm(folder, { recursive: true });
  }
});

/** A zombie is dead: in a container nobody may be there to bury it. */
function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}
