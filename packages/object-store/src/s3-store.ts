import { Readable } from "node:stream";
import { type Clock, contentDisposition, invariant, ServingError } from "@atelier/core";
import {
  DeleteObjectCommand,
  DeleteObjectsCommand,
  GetObjectCommand,
  HeadObjectCommand,
  ListObjectsV2Command,
  PutObjectCommand,
  S3Client,
} from "@aws-sdk/client-s3";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { checkKey, checkPrefix } from "./keys.ts";
import type { LinkOptions, ObjectStore, OpenObject, PutOptions, StoredObject } from "./object-store.ts";
import { ReadBody } from "./read-body.ts";
import { S3Calls } from "./s3-calls.ts";
import { inParts } from "./s3-parts.ts";
import { S3Upload } from "./s3-upload.ts";

/** Where a bucket is. Credentials are found as the AWS SDK finds them. */
export interface S3Settings {
  /** URL of an S3 that is not AWS's; undefined: AWS's. */
  readonly endpoint: string | undefined;
  readonly region: string;
  /** The bucket is named in the path and not in the host. */
  readonly pathStyle: boolean;
  /** How long a call may take, its retries included; writing may take longer by what its bytes need at 256 KiB/s. */
  readonly timeoutMs?: number;
}

export interface S3Place {
  readonly bucket: string;
  /** What every key begins with in the bucket, before a "/"; may be empty. */
  readonly prefix: string;
}

const TIMEOUT_MS = 15_000;
const TRIES_MAX = 3;
/** The pulling and uploading of one process; more calls wait for a connection. */
const CONNECTIONS_MAX = 64;
/** No key has a "~". */
const CHECK = ".check~";
const LINK_SECONDS_MAX = 7 * 86_400;

/** Objects in a bucket of S3, or of what speaks as it does. */
export class S3Store implements ObjectStore {
  readonly #client: S3Client;
  readonly #calls: S3Calls;
  readonly #clock: Clock;
  readonly #bucket: string;
  readonly #prefix: string;

  /** @throws RangeError where the endpoint is no URL of a server alone. */
  constructor({ bucket, prefix }: S3Place, { clock }: { readonly clock: Clock }, settings: S3Settings) {
    const { endpoint, region, pathStyle, timeoutMs = TIMEOUT_MS } = settings;
    const where = endpoint === undefined ? `AWS ${region}` : originOf(endpoint);
    this.#bucket = bucket;
    this.#prefix = prefix === "" ? "" : `${prefix}/`;
    this.#clock = clock;
    this.#client = new S3Client({
      region,
      forcePathStyle: pathStyle,
      maxAttempts: TRIES_MAX,
      requestHandler: {
        connectionTimeout: timeoutMs / TRIES_MAX,
        socketTimeout: timeoutMs / TRIES_MAX, // a connection that died unseen leaves time for another try
        socketAcquisitionWarningTimeout: timeoutMs, // waiting for a connection is no fault
        httpAgent: { keepAlive: true, maxSockets: CONNECTIONS_MAX },
        httpsAgent: { keepAlive: true, maxSockets: CONNECTIONS_MAX },
      },
      // Many that speak as S3 does know no checksums in trailers, the SDK's default.
      ...(endpoint !== undefined && {
        endpoint,
        requestChecksumCalculation: "WHEN_REQUIRED",
        responseChecksumValidation: "WHEN_REQUIRED",
      }),
    });
    const name = `the bucket ${bucket} at ${where}`;
    this.#calls = new S3Calls(this.#client, { clock, timeoutMs, name });
  }

  /** @throws ServingError STORAGE_UNAVAILABLE where the bucket cannot be listed. */
  async open(): Promise<void> {
    await this.#calls.run("opening", (send) =>
      send(new ListObjectsV2Command({ Bucket: this.#bucket, Prefix: this.#prefix, MaxKeys: 1 })),
    );
  }

  /** The signal is heeded between parts: of one that was on its way nobody could say whether it arrived. */
  async put(
    key: string,
    body: Uint8Array | AsyncIterable<Uint8Array>,
    { mediaType = "application/octet-stream", signal }: PutOptions = {},
  ): Promise<StoredObject> {
    checkKey(key);
    const at = { ...this.#at(key), ContentType: mediaType };
    const what = `writing ${key}`;
    let upload: S3Upload | undefined;
    let bytes = 0;
    try {
      for await (const { part, last } of inParts(body, signal)) {
        bytes += part.length;
        if (last && upload === undefined) {
          const command = new PutObjectCommand({ ...at, Body: part });
          await this.#calls.run(what, (send) => send(command), { bytes: part.length });
          break;
        }
        upload ??= await S3Upload.begin(this.#calls, at, what);
        await upload.add(part);
        if (last) await upload.complete();
      }
    } catch (error) {
      await upload?.abort();
      throw error;
    }
    return { key, bytes };
  }

  async get(key: string): Promise<OpenObject | undefined> {
    checkKey(key);
    const what = `reading ${key}`;
    const found = await this.#calls.ifThere(what, (send) => send(new GetObjectCommand(this.#at(key))));
    if (found === undefined) return undefined;
    const { Body: body, ContentLength: bytes } = found;
    invariant(body instanceof Readable, "the SDK gives a stream on Node");
    if (bytes === undefined) {
      body.destroy();
      throw this.#calls.unavailable(what, "does not say how long an object is");
    }
    return { key, bytes, body: new ReadBody(body, { bytes, next: (run) => this.#calls.inTime(what, run) }) };
  }

  async head(key: string): Promise<StoredObject | undefined> {
    checkKey(key);
    const what = `looking at ${key}`;
    const found = await this.#calls.ifThere(what, (send) => send(new HeadObjectCommand(this.#at(key))));
    return found && { key, bytes: found.ContentLength ?? 0 };
  }

  async remove(key: string): Promise<void> {
    checkKey(key);
    await this.#calls.ifThere(`removing ${key}`, (send) => send(new DeleteObjectCommand(this.#at(key))));
  }

  async *list(prefix: string): AsyncIterable<StoredObject> {
    checkPrefix(prefix);
    for await (const page of this.#pages(prefix)) yield* page;
  }

  async removeAll(prefix: string): Promise<number> {
    checkPrefix(prefix);
    const what = `removing ${prefix}`;
    let removed = 0;
    for await (const page of this.#pages(prefix)) {
      if (page.length === 0) continue;
      const Objects = page.map(({ key }) => ({ Key: this.#prefix + key }));
      const { Errors: errors = [] } = await this.#calls.run(what, (send) =>
        send(new DeleteObjectsCommand({ Bucket: this.#bucket, Delete: { Objects, Quiet: true } })),
      );
      const [first] = errors;
      if (first !== undefined) {
        throw this.#calls.unavailable(what, `kept ${errors.length} of ${page.length} objects: ${first.Code}`);
      }
      removed += page.length;
    }
    return removed;
  }

  link(key: string, { expiresMs, downloadName }: LinkOptions): Promise<string> {
    checkKey(key);
    const expiresIn = Math.ceil(expiresMs / 1000);
    if (!(expiresIn >= 1 && expiresIn <= LINK_SECONDS_MAX)) {
      throw new RangeError(`expiresMs=${expiresMs}: a link holds for 1 ms to ${LINK_SECONDS_MAX} s`);
    }
    const command = new GetObjectCommand({
      ...this.#at(key),
      ...(downloadName !== undefined && { ResponseContentDisposition: contentDisposition(downloadName, "inline") }),
    });
    const signingDate = new Date(this.#clock.nowMs());
    // Asks nobody, but for credentials that have to be fetched.
    return this.#calls.inTime(`linking ${key}`, () => getSignedUrl(this.#client, command, { expiresIn, signingDate }));
  }

  async check(): Promise<void> {
    const at = this.#at(CHECK);
    await this.#calls.run("writing", (send) => send(new PutObjectCommand({ ...at, Body: new Uint8Array(4096) })));
    await this.#calls.run("removing", (send) => send(new DeleteObjectCommand(at)));
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }

  #at(key: string) {
    return { Bucket: this.#bucket, Key: this.#prefix + key };
  }

  /** A thousand at a time, each page asked for after the last key of the one before, so that what is removed meanwhile is no matter. */
  async *#pages(prefix: string): AsyncIterable<StoredObject[]> {
    const where = { Bucket: this.#bucket, Prefix: this.#prefix + prefix };
    for (let after: string | undefined, more = true; more; ) {
      const start = after === undefined ? where : { ...where, StartAfter: after };
      const what = `listing ${prefix}`;
      const page = await this.#calls.run(what, (send) => send(new ListObjectsV2Command(start)));
      const found = page.Contents ?? [];
      const last = found.at(-1)?.Key;
      more = page.IsTruncated === true;
      if (more && (last === undefined || last === after)) {
        throw this.#calls.unavailable(what, "lists a page of nothing and says that more follows");
      }
      after = last;
      yield found.flatMap(({ Key = "", Size = 0 }) => {
        const key = Key.slice(this.#prefix.length);
        // What others put there that is no key of ours, such as a folder's own entry, is not ours.
        return isKey(key) ? [{ key, bytes: Size }] : [];
      });
    }
  }
}

function isKey(text: string): boolean {
  try {
    checkKey(text);
    return true;
  } catch (error) {
    if (error instanceof ServingError) return false;
    throw error;
  }
}

function originOf(endpoint: string): string {
  const url = URL.parse(endpoint);
  if (url === null || !/^https?:$/.test(url.protocol)) throw new RangeError("the S3 endpoint is no http or https URL");
  if (url.username !== "" || url.password !== "") {
    throw new RangeError(`the S3 endpoint ${url.origin} has a user or password in it: credentials are no part of it`);
  }
  return url.origin;
}
