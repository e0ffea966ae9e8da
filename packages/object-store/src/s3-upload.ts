import { ServingError } from "@atelier/core";
import {
  AbortMultipartUploadCommand,
  type CompletedPart,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  ListPartsCommand,
  UploadPartCommand,
} from "@aws-sdk/client-s3";
import type { S3Calls } from "./s3-calls.ts";

/** Parts under way at once; so many and the one being read are what an upload holds in memory. */
const PARTS_SENT_MAX = 2;
const ABORT_PAUSE_MS_MAX = 3_200;

interface At {
  readonly Bucket: string;
  readonly Key: string;
  readonly ContentType: string;
}

/**
 * An object in parts, there when `complete` resolves. `abort` waits for what is under way before it lets go: a part that
 * arrived after would stay, and be paid for.
 */
export class S3Upload {
  readonly #calls: S3Calls;
  readonly #upload: { readonly Bucket: string; readonly Key: string; readonly UploadId: string };
  readonly #what: string;
  readonly #sending = new Set<Promise<void>>();
  readonly #parts: CompletedPart[] = [];
  #failure: { readonly error: unknown } | undefined;
  #count = 0;

  private constructor(calls: S3Calls, upload: { Bucket: string; Key: string; UploadId: string }, what: string) {
    this.#calls = calls;
    this.#upload = upload;
    this.#what = what;
  }

  /** `what` it does, in words. */
  static async begin(calls: S3Calls, at: At, what: string): Promise<S3Upload> {
    const { UploadId } = await calls.run(what, (send) => send(new CreateMultipartUploadCommand(at)));
    if (UploadId === undefined) throw calls.unavailable(what, "gives an upload no id");
    return new S3Upload(calls, { Bucket: at.Bucket, Key: at.Key, UploadId }, what);
  }

  /** Resolves when there is room for the next one. */
  async add(part: Uint8Array): Promise<void> {
    const sending = this.#send(part, ++this.#count)
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#sending.delete(sending));
    this.#sending.add(sending);
    if (this.#sending.size >= PARTS_SENT_MAX) await Promise.race(this.#sending);
    this.#throwFailure();
  }

  async complete(): Promise<void> {
    await Promise.all(this.#sending);
    this.#throwFailure();
    const Parts = this.#parts.toSorted((a, b) => a.PartNumber! - b.PartNumber!);
    const command = new CompleteMultipartUploadCommand({ ...this.#upload, MultipartUpload: { Parts } });
    await this.#calls.run(this.#what, (send) => send(command));
  }

  /**
   * Nothing is left of it, unless the store is away: what is then is for the bucket's own rules. A part that the server
   * still was at is there again after an abort, which is why S3 has it looked for and aborted again.
   *
   * Source: Amazon S3 API Reference, AbortMultipartUpload.
   */
  async abort(): Promise<void> {
    await Promise.all(this.#sending);
    try {
      for (let pauseMs = 50; pauseMs <= ABORT_PAUSE_MS_MAX; pauseMs *= 4) {
        await this.#calls.ifThere(this.#what, (send) => send(new AbortMultipartUploadCommand(this.#upload)));
        const left = await this.#calls.ifThere(this.#what, (send) => send(new ListPartsCommand(this.#upload)));
        if (left === undefined) return;
        await this.#calls.pause(pauseMs);
      }
    } catch (error) {
      // Why the upload failed says more.
      if (!(error instanceof ServingError)) throw error;
    }
  }

  async #send(part: Uint8Array, number: number): Promise<void> {
    const command = new UploadPartCommand({ ...this.#upload, PartNumber: number, Body: part });
    const { ETag } = await this.#calls.run(this.#what, (send) => send(command), { bytes: part.length });
    this.#parts.push({ PartNumber: number, ...(ETag !== undefined && { ETag }) });
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure.error;
  }
}
