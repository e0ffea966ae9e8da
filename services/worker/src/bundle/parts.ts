import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { extname, isAbsolute, join, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { sha256 } from "@atelier/core";
import { type BundleManifest, MANIFEST_FILE } from "./manifest.ts";
import type { BundleProblems } from "./problems.ts";

/** Formats that run code when they are read. torch writes pickles under any of these names. */
const PICKLE_EXTENSIONS: ReadonlySet<string> = new Set([".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"]);

/** Files by name, relative to their bundle's folder. */
export type PartList = BundleManifest["parts"];

/**
 * Checks every file that the manifest names: that it lies in the bundle's folder, that we may read its kind, that it
 * has the size and the digest said. `root` is a real path. Digests are streamed; nothing is held in memory.
 *
 * Returns the files that may be trusted from here on, with their sizes in bytes.
 */
export async function checkParts(
  root: string,
  parts: PartList,
  problems: BundleProblems,
): Promise<ReadonlyMap<string, number>> {
  const good = new Map<string, number>();
  for (const [file, said] of Object.entries(parts)) {
    const complaint = (await complaintAboutPlace(root, file)) ?? (await complaintAboutContents(root, file, said));
    if (complaint === undefined) good.set(file, said.bytes);
    else problems.add(file, complaint);
  }
  return good;
}

/** The digest that names this very set of weights: over each part's name and digest, in order of name. */
export function bundleDigest(parts: PartList): string {
  const names = Object.keys(parts).sort();
  return sha256(names.map((name) => `${parts[name]!.sha256}  ${name}\n`).join(""));
}

/**
 * Why `file`, a path as a bundle's files state it, is not one that we open; undefined where it is.
 * A bundle may come from anywhere, so it can name no file but its own, by no route.
 */
export async function complaintAboutPlace(root: string, file: string): Promise<string | undefined> {
  if (file === "" || file.includes("\0")) return "is not the name of a file";
  if (isAbsolute(file) || /^[A-Za-z]:/.test(file)) return "is an absolute path; a part is named relative to its bundle";
  const steps = file.split(/[/\\]/);
  if (steps.includes("..")) return 'has ".." in its path; a part lies inside its bundle';
  if (file.includes("\\") || steps.includes("") || steps.includes(".")) {
    return "is not a plain path: names joined by single slashes";
  }
  if (file === MANIFEST_FILE) return "cannot hold its own digest";
  if (PICKLE_EXTENSIONS.has(extname(file).toLowerCase())) {
    return "is a pickle by its name, and reading a pickle can run any code; convert it to ONNX or safetensors";
  }
  try {
    const real = await realpath(join(root, file));
    if (!real.startsWith(root + sep)) return "leaves the bundle's folder through a symbolic link";
    return (await stat(real)).isFile() ? undefined : "is not a file";
  } catch (error) {
    return `cannot be opened: ${whyNot(error)}`;
  }
}

async function complaintAboutContents(root: string, file: string, said: PartList[string]): Promise<string | undefined> {
  const path = join(root, file);
  try {
    const { size } = await stat(path);
    if (size !== said.bytes) {
      const kind = size < said.bytes ? "truncated: it" : "not the file that was published: it";
      return `is ${kind} has ${size} bytes, ${MANIFEST_FILE} says ${said.bytes}`;
    }
    const digest = await fileDigest(path);
    if (digest === said.sha256) return undefined;
    return `is damaged or replaced: its sha256 is ${digest}, ${MANIFEST_FILE} says ${said.sha256}`;
  } catch (error) {
    return `cannot be read: ${whyNot(error)}`;
  }
}

async function fileDigest(path: string): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(createReadStream(path, { highWaterMark: 1 << 20 }), hash);
  return hash.digest("hex");
}

/** Node's reason without its system call and absolute path. */
export function whyNot(error: unknown): string {
  switch ((error as NodeJS.ErrnoException).code) {
    case "ENOENT":
      return "it is missing";
    case "ENOTDIR":
      return "a folder on its path is a file";
    case "EACCES":
      return "permission denied";
    case "ELOOP":
      return "its symbolic links go in a circle";
    default:
      return error instanceof Error ? error.message : String(error);
  }
}
