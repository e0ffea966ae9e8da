import { readdir, stat } from "node:fs/promises";
import { basename, dirname, extname, join } from "node:path";

/** Bytes of a graph and of the files beside it that may hold its weights; another graph does not. */
export async function weightsBytes(path: string): Promise<number> {
  const folder = dirname(path);
  const files = (await readdir(folder)).filter(
    (name) => name === basename(path) || ![".json", ".onnx"].includes(extname(name)),
  );
  const sizes = await Promise.all(files.map(async (name) => (await stat(join(folder, name))).size));
  return sizes.reduce((sum, size) => sum + size, 0);
}
