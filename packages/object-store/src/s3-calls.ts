import { type Clock, ServingError } from "@atelier/core";
import type { S3Client } from "@aws-sdk/client-s3";

/** What the SDK's client takes; its own type is one of overloads, which no function of ours could have. */
type Send = S3Client["send"];

/** A slower way than this is no way to send pictures. */
const BYTES_A_MS = 262;

/** Calls to one bucket: each within its time, and what goes wrong said as STORAGE_UNAVAILABLE. */
export class S3Calls {
  readonly #client: S3Client;
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #name: string;

  constructor(client: S3Client, options: { readonly clock: Clock; readonly timeoutMs: number; readonly name: string }) {
    this.#client = client;
    this.#clock = options.clock;
    this.#timeoutMs = options.timeoutMs;
    this.#name = options.name;
  }

  /** `bytes` is how much is written, which takes its time. @throws ServingError STORAGE_UNAVAILABLE. */
  run<T>(what: string, call: (send: Send) => Promise<T>, { bytes = 0 } = {}): Promise<T> {
    return this.#within(what, this.#timeoutMs + bytes / BYTES_A_MS, (abortSignal) =>
      call(((command: Parameters<Send>[0]) => this.#client.send(command, { abortSignal })) as Send),
    );
  }

  /** As `run`; undefined where there is no such object. */
  async ifThere<T>(what: string, call: (send: Send) => Promise<T>): Promise<T | undefined> {
    return this.run(what, (send) =>
      call(send).catch((error: unknown) => {
        if (["NoSuchKey", "NotFound", "NoSuchUpload"].includes(nameOf(error))) return undefined;
        throw error;
      }),
    );
  }

  /** Of what is no single call. */
  inTime<T>(what: string, run: () => Promise<T>): Promise<T> {
    return this.#within(what, this.#timeoutMs, run);
  }

  pause(ms: number): Promise<void> {
    return new Promise((resolve) => void this.#clock.after(ms, resolve));
  }

  unavailable(what: string, why: string, cause?: unknown): ServingError {
    return new ServingError("STORAGE_UNAVAILABLE", `${this.#name} ${why} (${what})`, { cause });
  }

  /** Also ends the waiting where `run` does not heed that it is late: the SDK looks for credentials without a limit. */
  async #within<T>(what: string, limitMs: number, run: (late: AbortSignal) => Promise<T>): Promise<T> {
    const late = new AbortController();
    const seconds = Math.round(limitMs / 100) / 10;
    let takeBack = () => {};
    const limit = new Promise<never>((_, reject) => {
      takeBack = this.#clock.after(limitMs, () => {
        const error = this.unavailable(what, `did not answer within ${seconds} s`);
        reject(error);
        late.abort(error);
      });
    });
    try {
      return await Promise.race([run(late.signal), limit]);
    } catch (error) {
      throw this.#explained(what, error);
    } finally {
      takeBack();
    }
  }

  /** Errors of the SDK carry what a server said, among it the access key, and are no cause of ours. */
  #explained(what: string, error: unknown): unknown {
    if (!(error instanceof Error) || error instanceof ServingError) return error;
    const name = nameOf(error);
    const code = "code" in error && typeof error.code === "string" ? error.code : undefined;
    const status = statusOf(error);
    const answered = `${name}${status === undefined ? "" : `, ${status}`}`;
    if (FULL.has(name) || status === 507) return this.unavailable(what, `is full: ${answered}`);
    if (name === "NoSuchBucket") return this.unavailable(what, `does not exist: ${answered}`);
    if (REFUSALS.has(name) || status === 401 || status === 403) {
      return this.unavailable(what, `refuses these credentials: ${answered}`);
    }
    if (/Credentials|Token(Refresh)?ProviderError/.test(name)) {
      return this.unavailable(what, "cannot be used: no AWS credentials are found, by AWS_ACCESS_KEY_ID or otherwise");
    }
    if (status !== undefined) return this.unavailable(what, `answers an error: ${answered}`);
    if (name === "TimeoutError") return this.unavailable(what, "does not answer: TimeoutError");
    if (code !== undefined && /^(E[A-Z]+|ERR_(TLS|SSL|STREAM).*|CERT_.*|.*_CERT.*|UND_ERR.*|HPE_.*)$/.test(code)) {
      return this.unavailable(what, `cannot be reached: ${code}`, error);
    }
    return error;
  }
}

const FULL = new Set(["XMinioStorageFull", "InsufficientStorage", "QuotaExceeded", "EntityTooLarge.Quota", "DiskFull"]);
const REFUSALS = new Set([
  "AccessDenied",
  "InvalidAccessKeyId",
  "SignatureDoesNotMatch",
  "ExpiredToken",
  "InvalidToken",
  "AuthorizationHeaderMalformed",
  "RequestTimeTooSkewed",
]);

function nameOf(error: unknown): string {
  return error instanceof Error ? error.name : "";
}

function statusOf(error: Error): number | undefined {
  const metadata = "$metadata" in error ? (error.$metadata as { readonly httpStatusCode?: number }) : undefined;
  const response = "$response" in error ? (error.$response as { readonly statusCode?: number } | undefined) : undefined;
  return metadata?.httpStatusCode ?? response?.statusCode;
}
