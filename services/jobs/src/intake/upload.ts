import type { Hash } from "node:crypto";
import type { Readable } from "node:stream";
import { ServingError } from "@atelier/core";

export interface UploadOptions {
  readonly bytesMax: number;
  readonly contentLength: number | undefined;
  /** Hears every byte. */
  readonly hash: Hash;
  readonly signal: AbortSignal;
}

/**
 * The bytes of an upload as they come. The stream is left open where somebody stops reading.
 *
 * @throws ServingError PAYLOAD_TOO_LARGE as soon as that is known, CANCELLED where the upload broke off, or the signal's
 * reason.
 */
export async function* uploadedBytes(
  body: Readable,
  { bytesMax, contentLength, hash, signal }: UploadOptions,
): AsyncIterable<Uint8Array> {
  signal.throwIfAborted();
  if (contentLength !== undefined && contentLength > bytesMax) throw tooLarge(`has ${contentLength} bytes`, bytesMax);
  const stop = () => void body.destroy(signal.reason as Error);
  signal.addEventListener("abort", stop, { once: true });
  // A stream that breaks after the last read has nobody to tell; without a listener it would end the process.
  body.on("error", () => {});
  let bytes = 0;
  try {
    for await (const part of body.iterator({ destroyOnReturn: false }) as AsyncIterable<Uint8Array>) {
      signal.throwIfAborted();
      bytes += part.length;
      if (bytes > bytesMax) throw tooLarge("goes on", bytesMax);
      hash.update(part);
      yield part;
    }
    signal.throwIfAborted();
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof ServingError || !brokeOff(error)) throw error;
    throw new ServingError("CANCELLED", "the upload broke off before its end", { cause: error });
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

function tooLarge(what: string, bytesMax: number): ServingError {
  const message = `the sheet ${what} and may have ${bytesMax} bytes (ATELIER_JOB_UPLOAD_MAX)`;
  return new ServingError("PAYLOAD_TOO_LARGE", message, { field: "sheet" });
}

function brokeOff(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return ["ECONNRESET", "EPIPE", "ERR_STREAM_PREMATURE_CLOSE", "ERR_STREAM_DESTROYED", "ABORT_ERR"].includes(code);
}
