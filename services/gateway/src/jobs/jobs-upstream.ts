import type { IncomingHttpHeaders } from "node:http";
import { PassThrough, type Readable } from "node:stream";
import { ServingError } from "@atelier/core";
import { Agent } from "undici";

/** A submission is answered once every item of it is stored, which for a million takes minutes after its last byte. */
const ANSWER_TIMEOUT_MS = 600_000;
/** Streams of events are never silent for longer: they are kept alive each 15 s. */
const SILENCE_MAX_MS = 60_000;
const CONNECT_TIMEOUT_MS = 2_000;

export interface JobsCall {
  readonly method: string;
  /** With its query. */
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
  /** Null: none. */
  readonly body: Readable | null;
  readonly signal: AbortSignal;
}

export interface JobsAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: Readable;
}

/** The jobs service, as the gateway speaks to it: nothing is held whole in either direction. */
export class JobsUpstream {
  readonly #url: string;
  readonly #agent = new Agent({
    connect: { timeout: CONNECT_TIMEOUT_MS },
    headersTimeout: ANSWER_TIMEOUT_MS,
    bodyTimeout: SILENCE_MAX_MS,
  });

  constructor(url: string) {
    this.#url = url;
  }

  /** @throws ServingError STORAGE_UNAVAILABLE where it does not answer; the signal's reason. */
  async call({ method, path, headers, body, signal }: JobsCall): Promise<JobsAnswer> {
    try {
      const answer = await this.#agent.request({
        origin: this.#url,
        method: method as "GET",
        path,
        headers,
        body: body && apart(body),
        signal,
      });
      return { status: answer.statusCode, headers: answer.headers, body: answer.body };
    } catch (cause) {
      signal.throwIfAborted();
      const message = `the jobs service does not answer (${(cause as Error).message}); what it took on goes on`;
      throw new ServingError("STORAGE_UNAVAILABLE", message, { cause });
    }
  }

  async close(): Promise<void> {
    await this.#agent.destroy();
  }
}

/**
 * `body`, so that its reader may go without destroying it: an answer that comes before a sheet was read to its end leaves
 * by the connection that the sheet comes on, and undici takes that away from a request that it lets go of. What is left of
 * it then goes nowhere.
 */
function apart(body: Readable): Readable {
  const copy = new PassThrough();
  body.pipe(copy);
  body.once("close", () => {
    if (!body.readableEnded) copy.destroy(new ServingError("CANCELLED", "the caller went away"));
  });
  copy.once("close", () => {
    body.unpipe(copy);
    body.resume();
  });
  copy.on("error", () => {}); // whoever reads it has been told
  return copy;
}
