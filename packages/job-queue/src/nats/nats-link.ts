import { ServingError } from "@atelier/core";
import {
  type ApiError,
  JetStreamApiError,
  type JetStreamManager,
  jetstreamManager,
  PubHeaders,
  type StoredMsg,
  type StreamConfig,
} from "@nats-io/jetstream";
import {
  connect,
  type NatsConnection,
  NoRespondersError,
  headers as newHeaders,
  RequestError,
  TimeoutError,
} from "@nats-io/transport-node";
import { NatsRequests, NoAnswer } from "./nats-requests.ts";

/** Error numbers of JetStream's API: nats-server/server/errors.json. */
export const JS = {
  streamNotFound: 10059,
  consumerNotFound: 10014,
  messageNotFound: 10037,
  sequenceNotFound: 10043,
  wrongLastSequence: 10071,
  wrongLastSequenceUnknown: 10164,
  storeFailed: 10077,
  notEnabled: 10039,
} as const;

/** What the server says where a page has nothing in it. */
const STATUS_NONE = 404;
const STATUS_NO_RESPONDERS = 503;

export interface LinkOptions {
  readonly servers: readonly string[];
  readonly tls: boolean;
  readonly credentials: { readonly user: string; readonly password: string } | undefined;
  readonly timeoutMs: number;
}

/** One connection, and what went wrong on it in our words. Reconnects by itself for as long as it is not closed. */
export class NatsLink {
  readonly connection: NatsConnection;
  readonly manager: JetStreamManager;
  readonly timeoutMs: number;
  readonly #servers: string;
  readonly #requests: NatsRequests;
  readonly #listeners = new Set<(lost: string | undefined) => void>();
  #lost = false;
  readonly #closing = new AbortController();

  private constructor(connection: NatsConnection, manager: JetStreamManager, options: LinkOptions) {
    this.connection = connection;
    this.timeoutMs = options.timeoutMs;
    this.#servers = options.servers.join(",");
    this.#requests = new NatsRequests(connection, options.timeoutMs);
    this.manager = manager;
    void this.#watch();
  }

  /** @throws ServingError STORAGE_UNAVAILABLE. */
  static async open(options: LinkOptions): Promise<NatsLink> {
    const { servers, tls, credentials, timeoutMs } = options;
    try {
      const connection = await connect({
        servers: [...servers],
        name: "atelier",
        timeout: timeoutMs,
        maxReconnectAttempts: -1,
        // A server whose password was changed for a while, by mistake, is no reason to end.
        ignoreAuthErrorAbort: true,
        reconnectTimeWait: 250,
        // A server that vanished without a word is noticed within two of them.
        pingInterval: 5_000,
        maxPingOut: 2,
        ...(tls ? { tls: {} } : {}),
        ...(credentials === undefined ? {} : { user: credentials.user, pass: credentials.password }),
      });
      try {
        const manager = await jetstreamManager(connection, { timeout: timeoutMs, checkAPI: false });
        await checkServer(connection, manager);
        return new NatsLink(connection, manager, options);
      } catch (error) {
        await connection.close();
        throw error;
      }
    } catch (error) {
      if (error instanceof ServingError) throw error;
      const message = `NATS at ${servers.join(",")} cannot be reached: ${(error as Error).message}`;
      throw new ServingError("STORAGE_UNAVAILABLE", message, { cause: error });
    }
  }

  get connected(): boolean {
    return !this.#lost && !this.closing.aborted;
  }

  /** Aborted when it is being closed. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** Runs `ask`; what NATS has against it is thrown as STORAGE_UNAVAILABLE, beginning with `what`. */
  async ask<T>(what: string, ask: () => Promise<T>): Promise<T> {
    if (this.closing.aborted) throw this.error(`${what}: the queue is closed`);
    try {
      return await ask();
    } catch (error) {
      throw this.told(what, error);
    }
  }

  /**
   * Stores a message in the stream of its subject, and gives its sequence. `id`: the same again soon is not stored. `expected`:
   * the sequence of the subject's last message, 0 that there is none.
   */
  publish(
    what: string,
    subject: string,
    payload: Uint8Array | string,
    {
      id,
      expected,
      traceparent = "",
      tracestate = "",
    }: {
      readonly id?: string;
      readonly expected?: number | undefined;
      readonly traceparent?: string;
      readonly tracestate?: string;
    } = {},
  ): Promise<number> {
    return this.ask(what, async () => {
      const headers = newHeaders();
      if (id !== undefined) headers.set(PubHeaders.MsgIdHdr, id);
      if (expected !== undefined) headers.set(PubHeaders.ExpectedLastSubjectSequenceHdr, String(expected));
      if (traceparent !== "") headers.set("traceparent", traceparent);
      if (tracestate !== "") headers.set("tracestate", tracestate);
      const answer = await this.#requests.ask(subject, payload, headers);
      if (answer.headers?.code === STATUS_NO_RESPONDERS) throw new NoRespondersError(subject);
      const stored = answer.json<{ seq: number; error?: ApiError }>();
      if (stored.error !== undefined) throw new JetStreamApiError(stored.error);
      return stored.seq;
    });
  }

  /** Says something about a delivery; resolves once the server has taken notice. */
  async say(what: string, reply: string, word: string): Promise<void> {
    await this.ask(what, async () => {
      const answer = await this.#requests.ask(reply, word);
      if (answer.headers?.code === STATUS_NO_RESPONDERS) throw new NoRespondersError(reply);
    });
  }

  told(what: string, error: unknown): unknown {
    if (error instanceof ServingError) return error;
    if (this.closing.aborted) return this.error(`${what}: the queue is closed`, error);
    if (error instanceof NoAnswer || error instanceof TimeoutError || (error as Error).cause instanceof TimeoutError) {
      const state = this.connection.isClosed() ? " and the connection is closed" : "";
      return this.error(`${what}: NATS at ${this.#servers} did not answer within ${this.timeoutMs} ms${state}`, error);
    }
    if (isNoResponders(error)) {
      return this.error(`${what}: no stream answers; it was deleted, or its servers are not ready`, error);
    }
    return this.error(`${what}: ${(error as Error).message}`, error);
  }

  error(message: string, cause?: unknown): ServingError {
    return new ServingError("STORAGE_UNAVAILABLE", message, { cause });
  }

  /** Makes the stream unless it is there; of one that is there only what may change is brought up to date. */
  async ensureStream(config: Partial<StreamConfig> & { readonly name: string }): Promise<void> {
    await this.ask(`stream ${config.name}`, async () => {
      try {
        await this.manager.streams.add(config);
      } catch (error) {
        // Another opener's settings, as of an older version: ours from now on.
        if (!(error instanceof JetStreamApiError) || error.code !== 10058) throw error;
        await this.manager.streams.update(config.name, config);
      }
    });
  }

  async streamExists(name: string): Promise<boolean> {
    try {
      await this.ask(`stream ${name}`, () => this.manager.streams.info(name));
      return true;
    } catch (error) {
      if (((error as ServingError).cause as JetStreamApiError | undefined)?.code === JS.streamNotFound) return false;
      throw error;
    }
  }

  /** A page of what the stream has under `subject` from `sequence` on, oldest first. */
  async page(
    stream: string,
    { subject, sequence, messages, bytes }: { subject: string; sequence: number; messages: number; bytes: number },
  ): Promise<readonly StoredMsg[]> {
    return this.ask(`stream ${stream}`, async () => {
      const found: StoredMsg[] = [];
      const batch = await this.manager.direct.getBatch(stream, {
        seq: sequence,
        next_by_subj: subject,
        batch: messages,
        max_bytes: bytes,
      });
      try {
        for await (const message of batch) found.push(message);
      } catch (error) {
        if ((error as { code?: unknown }).code !== STATUS_NONE) throw error;
      }
      return found;
    });
  }

  onConnection(listener: (lost: string | undefined) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async close(): Promise<void> {
    if (this.closing.aborted) return;
    this.#closing.abort();
    this.#requests.close();
    this.#listeners.clear();
    await this.connection.close();
  }

  async #watch(): Promise<void> {
    for await (const status of this.connection.status()) {
      if (status.type === "disconnect") this.#tell(`the connection to NATS at ${status.server} was lost`);
      if (status.type === "reconnect") this.#tell(undefined);
    }
  }

  #tell(lost: string | undefined): void {
    if (this.#lost === (lost !== undefined)) return; // each further try that fails is told of as well
    this.#lost = lost !== undefined;
    for (const listener of [...this.#listeners]) listener(lost);
  }
}

/** @throws ServingError STORAGE_UNAVAILABLE of a server that is too old or has no JetStream. */
async function checkServer({ info }: NatsConnection, manager: JetStreamManager): Promise<void> {
  const where = `NATS at ${info?.host}:${info?.port}`;
  const [major = 0, minor = 0] = (info?.version ?? "").split(".").map(Number);
  if (major < SERVER_MIN.major || (major === SERVER_MIN.major && minor < SERVER_MIN.minor)) {
    const needed = `${SERVER_MIN.major}.${SERVER_MIN.minor}`;
    throw new ServingError("STORAGE_UNAVAILABLE", `${where} is version ${info?.version}; jobs need ${needed} or newer`);
  }
  try {
    await manager.getAccountInfo();
  } catch (error) {
    const disabled = (error as Error).name === "JetStreamNotEnabled" || apiCode(error) === JS.notEnabled;
    if (!disabled && !isNoResponders(error)) return; // whoever asks for something is told
    const message = `${where} has no JetStream: start it with --jetstream, or enable it for this account`;
    throw new ServingError("STORAGE_UNAVAILABLE", message, { cause: error });
  }
}

/** Reading many messages at once, and a limit for each subject, came with it. */
const SERVER_MIN = { major: 2, minor: 11 };

export function isNoResponders(error: unknown): boolean {
  if (error instanceof NoRespondersError) return true;
  if (error instanceof RequestError && error.isNoResponders()) return true;
  const { cause, code } = (error ?? {}) as { cause?: unknown; code?: unknown };
  return code === 503 || (cause !== undefined && cause !== error && isNoResponders(cause));
}

/** The number that JetStream's API gave the error, of one that `ask` threw or of its own. */
export function apiCode(error: unknown): number | undefined {
  if (error instanceof JetStreamApiError) return error.code;
  const cause = (error as Error | undefined)?.cause;
  return cause instanceof JetStreamApiError ? cause.code : undefined;
}
