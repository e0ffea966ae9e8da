import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";

const root = join(import.meta.dirname, "../..");

/**
 * Writes `files`, or, with `--check` on the command line, says which of them are not what they would be and exits with 1.
 * A text of `undefined` is a file that there must not be. Paths are those within the project.
 */
export function writeOrCheck(files: ReadonlyMap<string, string | undefined>): void {
  const check = process.argv.includes("--check");
  const stale: string[] = [];
  for (const [path, text] of files) {
    const file = join(root, path);
    if (read(file) === text) continue;
    stale.push(path);
    if (check) continue;
    if (text === undefined) rmSync(file);
    else {
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, text);
    }
  }
  const script = relative(root, process.argv[1]!);
  for (const path of stale) console.log(check ? `${path} is not what node ${script} makes` : `${path} written`);
  if (check && stale.length > 0) process.exitCode = 1;
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
