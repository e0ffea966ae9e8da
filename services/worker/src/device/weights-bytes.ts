import { readdir, stat } from "node:fs/promises";
import { dirname, extname, join } from "node:path";

/** Bytes of a graph and of the files beside it that may hold its weights. */
export async function weightsBytes(path: string): Promise<number> {
  const folder = dirname(path);
  const files = (await readdir(folder)).filter((name) => extname(name) !== ".json");
  const sizes = await Promise.all(files.map(async (name) => (await stat(join(folder, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}
