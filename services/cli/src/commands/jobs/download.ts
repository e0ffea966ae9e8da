import { createHash } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rename, rm, stat } from "node:fs/promises";
import { dirname, join, relative, resolve } from "node:path";
import { Readable, Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CliError } from "../../cli-error.ts";
import type { Server } from "../../client/gateway-client.ts";
import type { ManifestLine } from "../../client/job-json.ts";
import { JobsClient } from "../../client/jobs-client.ts";
import { grouped, size } from "../../terminal/amounts.ts";
import { StatusLine } from "../../terminal/status-line.ts";
import { stopOnSignals } from "./stop-on-signals.ts";
import { pictures } from "./words.ts";

export interface DownloadOptions {
  readonly server: Server;
  readonly id: string;
  /** A folder, or a file that ends in .zip. */
  readonly output: string;
  readonly json: boolean;
}

/** Pictures fetched at once: enough to keep a line busy, few enough to leave the gateway to others. */
const AT_ONCE = 8;

interface Counts {
  written: number;
  /** There already, with the right bytes. */
  kept: number;
  bytes: number;
}

/** Fetches what a job has made. Resolves to the exit code. */
export async function downloadJob({ server, id, output, json }: DownloadOptions): Promise<number> {
  const stop = stopOnSignals();
  const line = new StatusLine(process.stderr);
  try {
    const client = new JobsClient(server, stop.signal);
    const counts = output.toLowerCase().endsWith(".zip")
      ? await archive({ client, id, file: output, line })
      : await fetchAll({ client, id, folder: output, line });
    line.clear();
    console.log(json ? JSON.stringify({ output, ...counts }) : inWords(output, counts));
    return 0;
  } catch (error) {
    line.clear();
    if (!stop.signal.aborted) throw error;
    console.error(`stopped; the same command goes on from here · 可用同一命令继续下载`);
    return 130;
  } finally {
    stop.end();
  }
}

function inWords(output: string, { written, kept, bytes }: Partial<Counts>): string {
  const files = written === undefined ? "" : `${pictures(written)}, `;
  const before = kept ? `; ${grouped(kept)} were there already` : "";
  return `${output}: ${files}${size(bytes ?? 0)}${before} · 已下载`;
}

interface Fetching {
  readonly client: JobsClient;
  readonly id: string;
  readonly line: StatusLine;
}

async function archive({ client, id, file, line }: Fetching & { file: string }): Promise<{ bytes: number }> {
  const reply = await client.archive(id);
  let bytes = 0;
  const count = new Transform({
    transform(chunk: Uint8Array, _encoding, done) {
      bytes += chunk.length;
      if (line.live) line.show(`${file}: ${size(bytes)}`);
      done(null, chunk);
    },
  });
  await writeBeside(file, (part) => pipeline(body(reply), count, createWriteStream(part)));
  return { bytes };
}

async function fetchAll({ client, id, folder, line }: Fetching & { folder: string }): Promise<Counts> {
  await mkdir(folder, { recursive: true });
  const counts: Counts = { written: 0, kept: 0, bytes: 0 };
  const running = new Set<Promise<void>>();
  let failed: { readonly error: unknown } | undefined;
  for await (const picture of client.manifest(id)) {
    if (failed !== undefined) break;
    if (picture.state !== "done") continue;
    const run = fetchPicture({ client, id, folder, picture, counts })
      .catch((error: unknown) => {
        failed ??= { error };
      })
      .finally(() => {
        running.delete(run);
        const seen = counts.written + counts.kept;
        line.show(`${folder}: ${pictures(seen)}, ${size(counts.bytes)}`);
      });
    running.add(run);
    if (running.size >= AT_ONCE) await Promise.race(running);
  }
  await Promise.all(running);
  if (failed !== undefined) throw failed.error;
  return counts;
}

async function fetchPicture({
  client,
  id,
  folder,
  picture,
  counts,
}: {
  client: JobsClient;
  id: string;
  folder: string;
  picture: ManifestLine;
  counts: Counts;
}): Promise<void> {
  const file = placeIn(folder, picture.file);
  if (await isThere(file, picture)) {
    counts.kept++;
    return;
  }
  const reply = await client.picture(id, picture.index);
  const hash = createHash("sha256");
  await mkdir(dirname(file), { recursive: true });
  await writeBeside(file, async (part) => {
    const count = new Transform({
      transform(chunk: Uint8Array, _encoding, done) {
        hash.update(chunk);
        counts.bytes += chunk.length;
        done(null, chunk);
      },
    });
    await pipeline(body(reply), count, createWriteStream(part));
    const sha256 = hash.digest("hex");
    if (picture.sha256 !== null && sha256 !== picture.sha256) {
      throw new CliError(`${picture.file} came with sha256 ${sha256}; the manifest says ${picture.sha256}`);
    }
  });
  counts.written++;
}

/** The service makes file names safe; a server that does not is not to write where it likes. */
function placeIn(folder: string, name: string): string {
  const file = resolve(folder, name);
  const inside = relative(resolve(folder), file);
  if (inside === "" || inside.startsWith("..") || resolve(inside) === inside) {
    throw new CliError(`the manifest names ${JSON.stringify(name)}, which is outside of ${folder}`);
  }
  return join(folder, inside);
}

async function isThere(file: string, { sha256, bytes }: ManifestLine): Promise<boolean> {
  const found = await stat(file).catch(() => undefined); // not there, or not for us: writing it says which
  if (found === undefined || sha256 === null || (bytes !== null && found.size !== bytes)) return false;
  const hash = createHash("sha256");
  await pipeline(createReadStream(file), hash);
  return hash.digest("hex") === sha256;
}

/** Whole or not at all: nobody finds half a picture, and what is there is complete when the command is run again. */
async function writeBeside(file: string, write: (part: string) => Promise<void>): Promise<void> {
  const part = `${file}.${process.pid}.part`;
  try {
    await write(part);
    await rename(part, file);
  } catch (error) {
    await rm(part, { force: true }).catch(() => {}); // the first failure is the one to tell
    if (error instanceof CliError || (error as Error).name === "AbortError") throw error;
    throw new CliError(`${file}: ${(error as Error).message}`, { cause: error });
  }
}

const body = (reply: Response) => Readable.fromWeb(reply.body as Parameters<typeof Readable.fromWeb>[0]);
