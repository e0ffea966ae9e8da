import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TEST_BUNDLE } from "./test-bundle.ts";

/** Copies the embedded model to `dir` under another id: a second model that is whole. `change` is made to its manifest. */
export async function copyBundle(dir: string, id: string, change: object = {}): Promise<string> {
  await cp(TEST_BUNDLE, dir, { recursive: true });
  const path = join(dir, "atelier.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
  await writeFile(path, JSON.stringify({ ...manifest, ...change, id }));
  return dir;
}
