import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { BundleManifest } from "./manifest.ts";
import { whyNot } from "./parts.ts";
import type { BundleProblems } from "./problems.ts";

/** Configuration files are a few kilobytes; a vocabulary is a few megabytes. */
const TEXT_BYTES_MAX = 64 * 2 ** 20;
/** Protobuf's own limit. Larger networks keep their weights in external data. */
const PROTOBUF_BYTES_MAX = 2 ** 31 - 1;

export interface BundleFilesInput {
  readonly root: string;
  readonly parts: BundleManifest["parts"];
  /** The size in bytes of every part that passed. */
  readonly good: ReadonlyMap<string, number>;
  readonly problems: BundleProblems;
}

/**
 * The files of one bundle that its manifest vouches for. Asking for another gives undefined: whoever checked the parts
 * has complained already.
 */
export class BundleFiles {
  readonly root: string;
  readonly #parts: BundleManifest["parts"];
  readonly #good: ReadonlyMap<string, number>;
  readonly #problems: BundleProblems;

  constructor({ root, parts, good, problems }: BundleFilesInput) {
    this.root = root;
    this.#parts = parts;
    this.#good = good;
    this.#problems = problems;
  }

  /** The manifest lists it, whole or not. */
  names(file: string): boolean {
    return Object.hasOwn(this.#parts, file);
  }

  /** It passed every check of a part. */
  has(file: string): boolean {
    return this.#good.has(file);
  }

  bytesOf(file: string): number {
    return this.#good.get(file) ?? 0;
  }

  async text(file: string): Promise<string | undefined> {
    const bytes = await this.#read(file, TEXT_BYTES_MAX);
    if (bytes === undefined) return undefined;
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    } catch {
      this.#problems.add(file, "is not UTF-8 text");
      return undefined;
    }
  }

  /** A JSON object; anything else is a problem. */
  async json(file: string): Promise<Readonly<Record<string, unknown>> | undefined> {
    const text = await this.text(file);
    if (text === undefined) return undefined;
    const json = parseObject(text);
    if (typeof json !== "string") return json;
    this.#problems.add(file, json);
    return undefined;
  }

  async protobuf(file: string): Promise<Uint8Array | undefined> {
    return this.#read(file, PROTOBUF_BYTES_MAX);
  }

  async #read(file: string, bytesMax: number): Promise<Uint8Array | undefined> {
    const size = this.#good.get(file);
    if (size === undefined) return undefined;
    if (size > bytesMax) {
      this.#problems.add(file, `has ${size} bytes; at most ${bytesMax} can be read`);
      return undefined;
    }
    try {
      return await readFile(join(this.root, file));
    } catch (error) {
      this.#problems.add(file, `cannot be read: ${whyNot(error)}`);
      return undefined;
    }
  }
}

/** The object that `text` holds, or a sentence that says why there is none. */
export function parseObject(text: string): Readonly<Record<string, unknown>> | string {
  try {
    const json: unknown = JSON.parse(text);
    if (typeof json === "object" && json !== null && !Array.isArray(json)) return json as Record<string, unknown>;
    return "does not hold a JSON object";
  } catch (error) {
    return `is not JSON: ${(error as Error).message}`;
  }
}
