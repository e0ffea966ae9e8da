import { setTimeout as sleep } from "node:timers/promises";
import { CliError } from "../cli-error.ts";
import { serverEvents } from "./server-events.ts";

/** The body of POST /generate, as far as the command line sets it; what is absent is the gateway's default. */
export interface GenerateBody {
  readonly prompt: string;
  readonly negative_prompt?: string;
  readonly width?: number;
  readonly height?: number;
  readonly steps?: number;
  readonly seed?: number;
  readonly guidance_scale?: number;
  readonly sampler?: string;
  readonly model?: string;
  readonly format?: string;
  readonly quality?: number;
  readonly num_images?: number;
  /** A picture file in base64. */
  readonly init_image?: string;
  readonly strength?: number;
}

export interface GenerateReply {
  readonly image: string; // base64
  readonly images?: readonly string[];
  readonly format: string;
  readonly width: number;
  readonly height: number;
  readonly seed: number;
  readonly model: string;
  readonly receipt: { readonly simulated?: boolean; readonly [key: string]: unknown };
}

/** How far a generation is, as the gateway says. */
export interface StageProgress {
  readonly stage: string;
  readonly steps_done: number;
  readonly steps_total: number;
}

export interface ModelEntry {
  readonly id: string;
  readonly name: string;
  readonly family: string;
  readonly license: string;
  readonly native_width: number;
  readonly native_height: number;
  readonly limits: { readonly size_max: number; readonly size_multiple: number };
  readonly defaults: { readonly steps: number; readonly sampler: string; readonly guidance_scale: number };
  readonly status: string;
  /** Of a load, 0..1. */
  readonly progress: number;
  readonly weights_bytes: number;
  readonly workers_ready: number;
}

/** A running system, and the key to it where it asks for one. */
export interface Server {
  readonly url: string;
  readonly key: string | undefined;
}

/** Names our gateway on every answer, failures included. */
const REQUEST_ID_HEADER = "x-atelier-request-id";
const PROBE_MAX_MS = 1500;
/** A little over the gateway's own limit for a request (2 minutes), which has the better message. */
const REQUEST_MAX_MS = 150_000;
const READY_MAX_MS = 120_000;

/** True where an Atelier gateway answers at `url`, ready or not. */
export async function answersAsAtelier(url: string): Promise<boolean> {
  try {
    const reply = await fetch(new URL("/healthz", url), { signal: AbortSignal.timeout(PROBE_MAX_MS) });
    await reply.body?.cancel();
    return reply.headers.has(REQUEST_ID_HEADER);
  } catch {
    return false; // nobody there, or not HTTP: to the question asked, both are a no
  }
}

/** True where the gateway at `url` answers nobody without an API key. */
export async function asksForKeys(url: string): Promise<boolean> {
  try {
    const reply = await fetch(new URL("/v1/models", url), { signal: AbortSignal.timeout(PROBE_MAX_MS) });
    await reply.body?.cancel();
    return reply.status === 401;
  } catch {
    return false; // whoever started the gateway hears of its end otherwise
  }
}

/** A gateway over HTTP. Every failure is a CliError with the server's own words, or that names the URL. */
export class GatewayClient {
  readonly #server: Server;
  readonly #signal: AbortSignal;

  /** @param signal ends what is under way: the gateway cancels a request whose caller is gone. */
  constructor(server: Server, signal: AbortSignal) {
    this.#server = server;
    this.#signal = signal;
  }

  /** Waits while the system is still loading its models. */
  async waitUntilReady(): Promise<void> {
    const untilMs = Date.now() + READY_MAX_MS;
    for (;;) {
      const reply = await this.#fetch("/readyz", { method: "GET" }, PROBE_MAX_MS * 4);
      if (reply.ok) return void (await reply.body?.cancel());
      if (Date.now() > untilMs) throw await failure(reply);
      await reply.body?.cancel();
      await sleep(250, undefined, { signal: this.#signal });
    }
  }

  /** Asks for events, and takes a plain answer too: a proxy or an older gateway may have no other. */
  async generate(body: GenerateBody, onProgress: (progress: StageProgress) => void): Promise<GenerateReply> {
    const request = {
      method: "POST",
      headers: { "content-type": "application/json", accept: "text/event-stream, application/json;q=0.5" },
      body: JSON.stringify(body),
    };
    const reply = await this.#fetch("/generate", request, REQUEST_MAX_MS);
    const streams = reply.ok && reply.headers.get("content-type")?.startsWith("text/event-stream");
    return streams ? this.#follow(reply, onProgress) : ((await this.#json(reply)) as GenerateReply);
  }

  async #follow(reply: Response, onProgress: (progress: StageProgress) => void): Promise<GenerateReply> {
    try {
      for await (const { name, data } of serverEvents(reply.body!)) {
        if (name === "progress") onProgress(JSON.parse(data) as StageProgress);
        if (name === "completed") return JSON.parse(data) as GenerateReply;
        if (name === "error") throw inWords(JSON.parse(data) as ErrorBody);
      }
    } catch (error) {
      if (error instanceof CliError) throw error;
      this.#signal.throwIfAborted();
      throw new CliError(`${reply.url} did not send its answer to the end: ${reasonOf(error)}`, { cause: error });
    }
    throw new CliError(`${reply.url} ended its answer before the picture came`);
  }

  async models(): Promise<readonly ModelEntry[]> {
    const reply = await this.#json(await this.#fetch("/v1/models", { method: "GET" }, PROBE_MAX_MS * 4));
    return (reply as { models: readonly ModelEntry[] }).models;
  }

  /** A route that takes and answers JSON; undefined for an answer without a body. */
  async call(method: string, path: string, body?: object): Promise<unknown> {
    const content = body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
    const reply = await this.#fetch(path, { method, ...content }, PROBE_MAX_MS * 4);
    return reply.status === 204 ? undefined : this.#json(reply);
  }

  /** Any route's answer, once it begins. @throws CliError with the server's words where it refuses. */
  async open(method: string, path: string, { timeoutMs, ...request }: OpenOptions): Promise<Response> {
    const reply = await this.#fetch(path, { method, ...request }, timeoutMs);
    if (!reply.ok) throw await failure(reply);
    return reply;
  }

  async #fetch(path: string, { headers, signal, ...request }: RequestInit, timeoutMs?: number): Promise<Response> {
    const { url: base, key } = this.#server;
    const url = new URL(path, base);
    // An empty variable counts as unset.
    const authorization: Record<string, string> = key ? { authorization: `Bearer ${key}` } : {};
    try {
      const signals = [this.#signal, ...(signal ? [signal] : [])];
      if (timeoutMs !== undefined) signals.push(AbortSignal.timeout(timeoutMs));
      const init = {
        ...request,
        headers: { ...(headers as object), ...authorization },
        signal: AbortSignal.any(signals),
      };
      // A body that is read as it is sent asks for this.
      return await fetch(url, request.body instanceof ReadableStream ? { ...init, duplex: "half" } : init);
    } catch (error) {
      this.#signal.throwIfAborted();
      const { cause } = error as Error;
      const refused = cause instanceof Error && "code" in cause && cause.code === "ECONNREFUSED";
      const advice = refused ? ". Is the system running? npm start runs it" : "";
      throw new CliError(`no answer from ${url}: ${reasonOf(error)}${advice}`, { cause: error });
    }
  }

  async #json(reply: Response): Promise<unknown> {
    if (!reply.ok) throw await failure(reply);
    try {
      return await reply.json();
    } catch (error) {
      this.#signal.throwIfAborted();
      throw new CliError(`${reply.url} did not send JSON to its end: ${reasonOf(error)}`, { cause: error });
    }
  }
}

export interface OpenOptions {
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string | ReadableStream<Uint8Array>;
  readonly signal?: AbortSignal;
  /** Of the whole answer; absent: as long as it goes on. */
  readonly timeoutMs?: number;
}

interface ErrorBody {
  readonly error: { readonly code: string; readonly message: string; readonly field?: string };
}

/** Codes of what may be otherwise soon. */
const PASSING = ["OVERLOADED", "STORAGE_UNAVAILABLE", "DRAINING", "RATE_LIMITED"];

/** What the server says went wrong. */
async function failure(reply: Response): Promise<CliError> {
  const text = await reply.text();
  try {
    return inWords(JSON.parse(text) as ErrorBody);
  } catch {
    return new CliError(`${reply.url} answered ${reply.status} ${reply.statusText}: is it an Atelier gateway?`);
  }
}

function inWords({ error }: ErrorBody): CliError {
  const field = error.field === undefined ? "" : ` (field ${error.field})`;
  return new CliError(`${error.message}${field} [${error.code}]`, { refused: !PASSING.includes(error.code) });
}

/** fetch says "fetch failed" and keeps the reason in `cause`; several addresses tried make an AggregateError. */
function reasonOf(error: unknown): string {
  const { name, message, cause } = error as Error;
  if (name === "TimeoutError") return "it took too long";
  if (cause instanceof AggregateError && cause.errors.length > 0) return (cause.errors[0] as Error).message;
  return cause instanceof Error ? cause.message : message;
}
