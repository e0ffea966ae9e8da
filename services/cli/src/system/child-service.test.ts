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
