import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, lstat, mkdir, open, opendir, readdir, rename, rm, rmdir, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { type Clock, ServingError } from "@atelier/core";
import { checkKey, checkPrefix } from "./keys.ts";
import type { ObjectStore, OpenObject, PutOptions, StoredObject } from "./object-store.ts";

/** Beside the objects, in one file system with them; no key begins so. */
const UNFINISHED = ".unfinished~";
/** What a killed writer left is removed after so long; no upload takes a day. */
const UNFINISHED_KEPT_MS = 86_400_000;
/** Reads that go on while the file is replaced or removed see the old one to its end: that is what POSIX promises. */
const READ_FLAGS = constants.O_RDONLY | constants.O_NOFOLLOW;

/**
 * Objects as files under a folder, a key's path being the file's. Written beside, synced, then renamed: who reads finds the
 * old object, the new one, or none. The folder belongs to the store alone.
 */
export class FilesStore implements ObjectStore {
  readonly #root: string;
  readonly #clock: Clock;
  /** Folders known to exist; forgotten when one turns out to be gone. */
  readonly #folders = new Set<string>();
  readonly #syncs = new FolderSyncs();

  constructor(root: string, { clock }: { readonly clock: Clock }) {
    this.#root = root;
    this.#clock = clock;
  }

  /** Makes the folder and removes what killed writers left. @throws ServingError STORAGE_UNAVAILABLE. */
  async open(): Promise<void> {
    await this.#io("opening", async () => {
      await mkdir(join(this.#root, UNFINISHED), { recursive: true });
      for (const name of await readdir(join(this.#root, UNFINISHED))) {
        const path = join(this.#root, UNFINISHED, name);
        const { mtimeMs } = await lstat(path).catch(() => ({ mtimeMs: Infinity })); // another process was quicker
        if (this.#clock.nowMs() - mtimeMs > UNFINISHED_KEPT_MS) await rm(path, { force: true });
      }
    });
  }

  async put(
    key: string,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    { signal }: PutOptions = {},
  ): Promise<StoredObject> {
    checkKey(key);
    const unfinished = join(this.#root, UNFINISHED, randomUUID());
    return this.#io(`writing ${key}`, async () => {
      try {
        const bytes = await write(unfinished, body, signal);
        await this.#moveInto(unfinished, key);
        return { key, bytes };
      } catch (error) {
        await rm(unfinished, { force: true });
        throw error;
      }
    });
  }

  get(key: string): Promise<OpenObject | undefined> {
    checkKey(key);
    return this.#io(`reading ${key}`, async () => {
      const file = await ifThere(open(join(this.#root, key), READ_FLAGS));
      if (file === undefined) return undefined;
      const stats = await file.stat();
      if (!stats.isFile()) {
        await file.close();
        return undefined;
      }
      return { key, bytes: stats.size, body: file.createReadStream({ highWaterMark: READ_BYTES }) };
    });
  }

  head(key: string): Promise<StoredObject | undefined> {
    checkKey(key);
    return this.#io(`looking at ${key}`, async () => {
      const stats = await ifThere(lstat(join(this.#root, key)));
      return stats?.isFile() ? { key, bytes: stats.size } : undefined;
    });
  }

  remove(key: string): Promise<void> {
    checkKey(key);
    return this.#io(`removing ${key}`, async () => {
      await ifThere(unlink(join(this.#root, key)));
      await this.#pruneAbove(key);
    });
  }

  async *list(prefix: string): AsyncIterable<StoredObject> {
    checkPrefix(prefix);
    yield* this.#listFolder(prefix);
  }

  async removeAll(prefix: string): Promise<number> {
    let removed = 0;
    for await (const { key } of this.list(prefix)) {
      await this.#io(`removing ${key}`, () => ifThere(unlink(join(this.#root, key))));
      removed++;
    }
    if (prefix !== "") await this.#io(`removing ${prefix}`, () => this.#removeEmpty(prefix));
    return removed;
  }

  async link(): Promise<undefined> {
    return undefined;
  }

  async check(): Promise<void> {
    await this.#io("writing", async () => {
      const path = join(this.#root, UNFINISHED, randomUUID());
      await mkdir(dirname(path), { recursive: true });
      try {
        await write(path, new Uint8Array(CHECK_BYTES), undefined);
      } finally {
        await rm(path, { force: true });
      }
    });
  }

  async close(): Promise<void> {}

  /** A folder at a time: names are sorted as keys are, a folder's with the "/" that follows it. */
  async *#listFolder(prefix: string): AsyncIterable<StoredObject> {
    const entries = await this.#io(`listing ${prefix}`, async () => {
      const found: { name: string; folder: boolean }[] = [];
      const folder = await ifThere(opendir(join(this.#root, prefix)));
      if (folder === undefined) return found;
      for await (const entry of folder) {
        if (entry.isDirectory() && entry.name !== UNFINISHED) found.push({ name: `${entry.name}/`, folder: true });
        if (entry.isFile()) found.push({ name: entry.name, folder: false });
      }
      return found.sort((a, b) => (a.name < b.name ? -1 : 1));
    });
    for (const { name, folder } of entries) {
      if (folder) yield* this.#listFolder(prefix + name);
      else {
        const stored = await this.head(prefix + name);
        if (stored !== undefined) yield stored;
      }
    }
  }

  /** Renames; the folder is made where it is missing, also when somebody removed it as empty at this moment. */
  async #moveInto(unfinished: string, key: string): Promise<void> {
    const path = join(this.#root, key);
    const folder = dirname(path);
    for (let triesLeft = 3; ; triesLeft--) {
      if (!this.#folders.has(folder)) await mkdir(folder, { recursive: true });
      try {
        await rename(unfinished, path);
        break;
      } catch (error) {
        this.#folders.delete(folder);
        if (codeOf(error) !== "ENOENT" || triesLeft === 0) throw error;
      }
    }
    if (this.#folders.size > FOLDERS_KNOWN_MAX) this.#folders.clear();
    this.#folders.add(folder);
    await this.#syncs.sync(folder);
  }

  async #pruneAbove(key: string): Promise<void> {
    for (let folder = dirname(key); folder !== "."; folder = dirname(folder)) {
      this.#folders.delete(join(this.#root, folder));
      const emptied = await rmdir(join(this.#root, folder)).then(
        () => true,
        () => false, // not empty, or gone already
      );
      if (!emptied) return;
    }
  }

  async #removeEmpty(prefix: string): Promise<void> {
    const path = join(this.#root, prefix);
    const entries = (await ifThere(readdir(path, { withFileTypes: true }))) ?? [];
    for (const entry of entries) if (entry.isDirectory()) await this.#removeEmpty(`${prefix}${entry.name}/`);
    this.#folders.delete(join(this.#root, prefix.slice(0, -1)));
    await rmdir(path).catch(() => {}); // somebody wrote into it meanwhile, or it was never there
    await this.#pruneAbove(prefix.slice(0, -1));
  }

  async #io<T>(what: string, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (error) {
      const why = REASONS[codeOf(error) ?? ""];
      if (why === undefined) throw error;
      const message = `the object store at ${this.#root} ${why} (${what}: ${codeOf(error)})`;
      throw new ServingError("STORAGE_UNAVAILABLE", message, { cause: error });
    }
  }
}

const READ_BYTES = 256 * 1024;
const CHECK_BYTES = 4096;
const FOLDERS_KNOWN_MAX = 10_000;

/** What a file system says when it cannot do its work; anything else is a bug of ours. */
const REASONS: Record<string, string | undefined> = {
  ENOSPC: "is full",
  EDQUOT: "is full: its quota is used up",
  EROFS: "cannot be written: its file system is read-only",
  EACCES: "cannot be used: permission denied",
  EPERM: "cannot be used: not permitted",
  ENOENT: "is gone",
  ENOTDIR: "cannot be used: something on its path is a file",
  EISDIR: "cannot be used: a folder is where an object belongs",
  ELOOP: "cannot be used: a link is where an object belongs",
  EIO: "does not work: input or output error",
  EMFILE: "cannot be used: too many open files in this process",
  ENFILE: "cannot be used: too many open files on this machine",
  ESTALE: "is gone: stale file handle",
  ETIMEDOUT: "does not answer",
};

async function write(
  path: string,
  body: Uint8Array | AsyncIterable<Uint8Array>,
  signal: AbortSignal | undefined,
): Promise<number> {
  const file = await open(path, "wx");
  try {
    let bytes = 0;
    for await (const part of body instanceof Uint8Array ? [body] : body) {
      signal?.throwIfAborted();
      await writeAll(file, part);
      bytes += part.length;
    }
    signal?.throwIfAborted();
    await file.datasync();
    return bytes;
  } finally {
    await file.close();
  }
}

async function writeAll(file: FileHandle, part: Uint8Array): Promise<void> {
  for (let from = 0; from < part.length; ) from += (await file.write(part, from)).bytesWritten;
}

/** Of one folder at a time; whoever comes while one is under way shares the next, which sees all renames before it. */
class FolderSyncs {
  readonly #running = new Map<string, Promise<void>>();
  readonly #next = new Map<string, Promise<void>>();

  sync(folder: string): Promise<void> {
    const running = this.#running.get(folder);
    if (running === undefined) return this.#run(folder);
    let next = this.#next.get(folder);
    if (next === undefined) {
      const begin = () => {
        this.#next.delete(folder);
        return this.#run(folder);
      };
      next = running.then(begin, begin);
      this.#next.set(folder, next);
    }
    return next;
  }

  #run(folder: string): Promise<void> {
    const run = syncFolder(folder).finally(() => {
      if (this.#running.get(folder) === run) this.#running.delete(folder);
    });
    this.#running.set(folder, run);
    return run;
  }
}

/** A rename is durable once its folder is. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

async function ifThere<T>(found: Promise<T>): Promise<T | undefined> {
  try {
    return await found;
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ELOOP"].includes(codeOf(error) ?? "")) return undefined;
    throw error;
  }
}

function codeOf(error: unknown): string | undefined {
  return error instanceof Error && "code" in error && typeof error.code === "string" ? error.code : undefined;
}
