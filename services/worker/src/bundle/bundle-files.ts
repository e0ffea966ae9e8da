import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { type PartList, whyNot } from "./parts.ts";
import type { BundleProblems } from "./problems.ts";

/** Configuration files are a few kilobytes; a vocabulary is a few megabytes. */
const TEXT_BYTES_MAX = 64 * 2 ** 20;
/** Protobuf's own limit. Larger networks keep their weights in external data. */
const PROTOBUF_BYTES_MAX = 2 ** 31 - 1;

/** Files of one folder, and what its manifest says of them. */
export interface FileSource {
  /** A real path. */
  readonly root: string;
  readonly parts: PartList;
  /** The size in bytes of every part that passed. */
  readonly good: ReadonlyMap<string, number>;
}

export interface BundleFilesInput {
  readonly own: FileSource;
  /** Folders whose files lie in other bundles. */
  readonly borrowed: ReadonlyMap<string, FileSource>;
  readonly problems: BundleProblems;
}

/**
 * The files of one bundle that its manifest vouches for, those of borrowed folders under the names that they would have
 * in its own. Asking for another gives undefined: whoever checked the parts has complained already.
 */
export class BundleFiles {
  readonly #own: FileSource;
  readonly #borrowed: ReadonlyMap<string, FileSource>;
  readonly #problems: BundleProblems;

  constructor({ own, borrowed, problems }: BundleFilesInput) {
    this.#own = own;
    this.#borrowed = borrowed;
    this.#problems = problems;
  }

  /** Every part, the borrowed ones as if they were the bundle's own. */
  get parts(): PartList {
    return Object.assign({}, this.#own.parts, ...[...this.#borrowed.values()].map(({ parts }) => parts));
  }

  /** The manifest lists it, whole or not. */
  names(file: string): boolean {
    return Object.hasOwn(this.#sourceOf(file).parts, file);
  }

  /** It passed every check of a part. */
  has(file: string): boolean {
    return this.#sourceOf(file).good.has(file);
  }

  bytesOf(file: string): number {
    return this.#sourceOf(file).good.get(file) ?? 0;
  }

  /** The real folder of the bundle that `file`, or a folder, lies in. */
  rootOf(file: string): string {
    return this.#sourceOf(file).root;
  }

  /** Where a file or a folder really lies. */
  pathOf(file: string): string {
    return join(this.rootOf(file), file);
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
    const size = this.#sourceOf(file).good.get(file);
    if (size === undefined) return undefined;
    if (size > bytesMax) {
      this.#problems.add(file, `has ${size} bytes; at most ${bytesMax} can be read`);
      return undefined;
    }
    try {
      return await readFile(this.pathOf(file));
    } catch (error) {
      this.#problems.add(file, `cannot be read: ${whyNot(error)}`);
      return undefined;
    }
  }

  #sourceOf(file: string): FileSource {
    return this.#borrowed.get(file.split("/")[0]!) ?? this.#own;
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
