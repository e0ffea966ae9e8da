import { existsSync, globSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { cached, NotToBeHad } from "./cache-folder.ts";
import type { Program } from "./programs.ts";
import { type Outcome, runProgram } from "./run-program.ts";

/**
 * `program` out of the Debian package `packageName`, unpacked into the cache folder together with those that it needs
 * and that are not installed. Needs no privilege, and no service starts, as one would after an `apt-get install`.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function unpackDebian({
  packageName,
  program,
}: {
  packageName: string;
  program: string;
}): Promise<Program> {
  const folder = await cached(`debian-${packageName}-${process.arch}`, (building) => unpack(packageName, building));
  const path = join(folder, "usr", "bin", program);
  if (!existsSync(path)) throw new NotToBeHad(`the Debian package ${packageName} has no ${program}: ${path}`);
  const libraries = globSync("{usr/,}lib/*-linux-gnu", { cwd: folder }).map((name) => join(folder, name));
  return { path, env: libraries.length === 0 ? {} : { LD_LIBRARY_PATH: libraries.join(":") } };
}

async function unpack(packageName: string, folder: string): Promise<void> {
  const downloads = join(folder, "packages");
  await mkdir(downloads);
  const options = await aptOptions(packageName, join(folder, "apt"));
  const planned = await apt([...options, "--no-install-recommends", "--simulate", "install", packageName]);
  const wanted = [...planned.stdout.matchAll(/^Inst (\S+)/gm)].map((match) => match[1]!);
  // Nothing to do: it is installed, though what was looked for is not on PATH.
  if (wanted.length === 0) wanted.push(packageName);
  await apt([...options, "download", ...wanted], downloads);
  for (const file of globSync("*.deb", { cwd: downloads })) {
    must(await runProgram("dpkg", ["--extract", join(downloads, file), folder]), `unpacking ${file}`);
  }
  await Promise.all([downloads, join(folder, "apt")].map((used) => rm(used, { recursive: true, force: true })));
}

/** None where the system's package lists know the package; else lists of our own, freshly fetched. */
async function aptOptions(packageName: string, folder: string): Promise<readonly string[]> {
  const known = await runProgram("apt-cache", ["show", packageName]);
  if (known.code === 0 && known.stdout.includes(`Package: ${packageName}`)) return [];
  await mkdir(join(folder, "lists", "partial"), { recursive: true });
  await mkdir(join(folder, "cache", "archives", "partial"), { recursive: true });
  const options = [
    ["Dir::State::Lists", join(folder, "lists")],
    ["Dir::Cache", join(folder, "cache")],
    ["APT::Sandbox::User", ""], // the user that apt would fetch as may not write here
  ].flatMap(([name, value]) => ["--option", `${name}=${value}`]);
  await apt([...options, "--quiet=2", "update"]);
  return options;
}

async function apt(args: readonly string[], cwd?: string): Promise<Outcome> {
  return must(await runProgram("apt-get", args, cwd === undefined ? {} : { cwd }), `apt-get ${args.join(" ")}`);
}

function must(outcome: Outcome, what: string): Outcome {
  if (outcome.code === 0) return outcome;
  throw new NotToBeHad(`${what} ended with ${outcome.code}: ${outcome.stderr.trim().slice(-500)}`);
}
