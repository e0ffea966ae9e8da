import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { basename, extname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { CliError } from "../cli-error.ts";
import { GatewayClient, type Server } from "./gateway-client.ts";
import type { ItemJson, JobJson, ManifestLine, PreviewJson } from "./job-json.ts";
import { lines } from "./lines.ts";
import { serverEvents } from "./server-events.ts";

/** What a sheet is sent as, by its file's name. */
const SHEET_TYPES: Record<string, string> = {
  ".csv": "text/csv",
  ".tsv": "text/tab-separated-values",
  ".jsonl": "application/x-ndjson",
  ".ndjson": "application/x-ndjson",
  ".json": "application/json",
};

/** An upload of 512 MiB over 10 Mbit/s takes 7 minutes. */
const SUBMIT_MAX_MS = 3_600_000;
/** A change is in effect when its event has come back: the service's own limit is 10 s. */
const COMMAND_MAX_MS = 30_000;
/** The service says something every few seconds; after this the connection is taken for lost. */
const SILENCE_MAX_MS = 60_000;
const RECONNECT_MS = [250, 500, 1_000, 2_000, 4_000];

export interface Submission {
  /** The options of the job, as POST /v1/jobs takes them. */
  readonly options: object;
  /** A file of rows; undefined: the options hold them. */
  readonly sheet: string | undefined;
  /** Sending it again with the same key makes no second job. */
  readonly idempotencyKey: string;
}

/** Bulk jobs at a gateway. Every failure is a CliError with the server's own words. */
export class JobsClient {
  readonly #gateway: GatewayClient;
  readonly #signal: AbortSignal;

  constructor(server: Server, signal: AbortSignal = new AbortController().signal) {
    this.#gateway = new GatewayClient(server, signal);
    this.#signal = signal;
  }

  async submit(submission: Submission, onSent: (bytes: number, total: number) => void): Promise<JobJson> {
    const headers = { "idempotency-key": submission.idempotencyKey };
    return (await this.#send("/v1/jobs", submission, headers, onSent)) as JobJson;
  }

  /** What it would come to; nothing is kept. */
  async preview(submission: Submission, onSent: (bytes: number, total: number) => void): Promise<PreviewJson> {
    return (await this.#send("/v1/jobs?dry_run=true", submission, {}, onSent)) as PreviewJson;
  }

  async #send(
    path: string,
    { options, sheet }: Submission,
    headers: Record<string, string>,
    onSent: (bytes: number, total: number) => void,
  ): Promise<unknown> {
    const json = JSON.stringify(options);
    const request =
      sheet === undefined
        ? { headers: { ...headers, "content-type": "application/json" }, body: json }
        : await multipart({ json, sheet, headers, onSent });
    const reply = await this.#gateway.open("POST", path, { ...request, timeoutMs: SUBMIT_MAX_MS });
    return reply.json();
  }

  async list(query: Record<string, string | number | undefined>): Promise<readonly JobJson[]> {
    const search = new URLSearchParams();
    for (const [name, value] of Object.entries(query)) if (value !== undefined) search.set(name, String(value));
    return ((await this.#gateway.call("GET", `/v1/jobs?${search}`)) as { jobs: readonly JobJson[] }).jobs;
  }

  async get(id: string): Promise<JobJson> {
    return (await this.#gateway.call("GET", pathOf(id))) as JobJson;
  }

  async items(id: string, { state, limit }: { state: string; limit: number }): Promise<readonly ItemJson[]> {
    const path = `${pathOf(id)}/items?state=${state}&limit=${limit}`;
    return ((await this.#gateway.call("GET", path)) as { items: readonly ItemJson[] }).items;
  }

  async command(id: string, verb: "pause" | "resume" | "cancel" | "retry", body?: object): Promise<unknown> {
    const content = body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const reply = await this.#gateway.open("POST", `${pathOf(id)}/${verb}`, { ...content, timeoutMs: COMMAND_MAX_MS });
    return reply.json();
  }

  async remove(id: string): Promise<void> {
    const reply = await this.#gateway.open("DELETE", pathOf(id), { timeoutMs: COMMAND_MAX_MS });
    await reply.body?.cancel();
  }

  /** The job now, and again whenever it changes, until it has ended. Connections that are lost are made anew. */
  async *follow(id: string): AsyncGenerator<JobJson> {
    let lastEventId: string | undefined;
    for (let failures = 0; ; ) {
      try {
        const job = await this.get(id); // also what says that there is no such job
        yield job;
        if (hasEnded(job)) return;
        for await (const event of this.#events(id, lastEventId)) {
          failures = 0;
          lastEventId = event.id ?? lastEventId;
          const changed = event.job;
          if (changed === undefined) continue;
          yield changed;
          if (hasEnded(changed)) return;
        }
      } catch (error) {
        this.#signal.throwIfAborted();
        if (!(error instanceof CliError) || error.refused || failures >= RECONNECT_MS.length) throw error;
      }
      await sleep(RECONNECT_MS[Math.min(failures++, RECONNECT_MS.length - 1)], undefined, { signal: this.#signal });
    }
  }

  async *#events(id: string, lastEventId: string | undefined): AsyncGenerator<{ id?: string; job?: JobJson }> {
    const headers = { accept: "text/event-stream", ...(lastEventId !== undefined && { "last-event-id": lastEventId }) };
    const silence = new AbortController();
    const reply = await this.#gateway.open("GET", `${pathOf(id)}/events`, { headers, signal: silence.signal });
    const timer = setTimeout(() => silence.abort(), SILENCE_MAX_MS);
    const heard = async function* (body: AsyncIterable<Uint8Array>) {
      for await (const chunk of body) {
        timer.refresh();
        yield chunk;
      }
    };
    try {
      for await (const event of serverEvents(heard(reply.body!))) {
        const data = JSON.parse(event.data) as { job?: JobJson };
        yield { ...(event.id !== undefined && { id: event.id }), ...(data.job !== undefined && { job: data.job }) };
      }
    } catch (error) {
      this.#signal.throwIfAborted();
      throw new CliError(`the events of job ${id} broke off: ${(error as Error).message}`, { cause: error });
    } finally {
      clearTimeout(timer);
      silence.abort();
    }
  }

  async *manifest(id: string): AsyncGenerator<ManifestLine> {
    const reply = await this.#gateway.open("GET", `${pathOf(id)}/manifest`, {});
    for await (const line of lines(reply.body!)) yield JSON.parse(line) as ManifestLine;
  }

  async picture(id: string, index: number): Promise<Response> {
    return this.#gateway.open("GET", `${pathOf(id)}/items/${index}/image`, {});
  }

  async archive(id: string): Promise<Response> {
    return this.#gateway.open("GET", `${pathOf(id)}/archive`, {});
  }
}

export function hasEnded({ status, ended_at }: JobJson): boolean {
  return (status === "done" || status === "cancelled") && ended_at !== null;
}

const pathOf = (id: string) => `/v1/jobs/${encodeURIComponent(id)}`;

/** The options and then the sheet, as a form; the file is read as it is sent. */
async function multipart({
  json,
  sheet,
  headers,
  onSent,
}: {
  json: string;
  sheet: string;
  headers: Record<string, string>;
  onSent: (bytes: number, total: number) => void;
}) {
  const type = SHEET_TYPES[extname(sheet).toLowerCase()];
  if (type === undefined) {
    throw new CliError(`${sheet}: a sheet's name ends in ${Object.keys(SHEET_TYPES).join(", ")}`, { exitCode: 2 });
  }
  const boundary = `atelier-${crypto.randomUUID()}`;
  const part = (disposition: string, contentType: string) =>
    `--${boundary}\r\ncontent-disposition: form-data; ${disposition}\r\ncontent-type: ${contentType}\r\n\r\n`;
  const fileName = basename(sheet).replace(/["\\\r\n]/g, "_");
  const before = Buffer.from(
    `${part('name="job"', "application/json")}${json}\r\n${part(`name="sheet"; filename="${fileName}"`, type)}`,
  );
  const after = Buffer.from(`\r\n--${boundary}--\r\n`);
  const { size } = await stat(sheet).catch((error: Error) => {
    throw new CliError(`${sheet} cannot be read: ${error.message}`, { cause: error });
  });
  const body = async function* () {
    yield before;
    let sent = 0;
    for await (const chunk of createReadStream(sheet)) {
      yield chunk as Uint8Array;
      sent += chunk.length;
      onSent(sent, size);
    }
    yield after;
  };
  return {
    headers: { ...headers, "content-type": `multipart/form-data; boundary=${boundary}` },
    body: ReadableStream.from(body()),
  };
}
