import { PassThrough, type Readable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Clock } from "@atelier/core";
import type { FastifyReply } from "fastify";

/** Well below the minute after which proxies give up on a silent connection. */
const KEEP_ALIVE_MS = 15_000;
/** Small, so that a slow reader is noticed: the kernel's own buffers come on top. */
const BUFFER_MAX_BYTES = 16 * 1024;

export const EVENT_STREAM_TYPE = "text/event-stream";

export const EVENT_STREAM_HEADERS = {
  "content-type": EVENT_STREAM_TYPE,
  "cache-control": "no-store",
  // nginx would gather the events and pass them on together.
  "x-accel-buffering": "no",
} as const;

/**
 * Resolves when the stream's headers have left: what fails right after its begin would change the status that they carry
 * else, under a body of events.
 */
export async function headersOut({ raw }: FastifyReply): Promise<void> {
  while (!raw.headersSent && !raw.closed) await nextTurn();
}

/**
 * One answer as server-sent events. Comments keep it alive while nothing else is said. It has no queue limit of its
 * own: a sender heeds what `send` returns, save for what must arrive.
 *
 * Source: WHATWG HTML, section 9.2 "Server-sent events".
 */
export class EventStream {
  readonly #stream = new PassThrough({ highWaterMark: BUFFER_MAX_BYTES });
  readonly #clock: Clock;
  #cancelKeepAlive: () => void;

  /** @param onDrain called when more is welcome after `send` returned false. */
  constructor(clock: Clock, onDrain: () => void) {
    this.#clock = clock;
    this.#stream.on("drain", onDrain);
    this.#stream.on("close", () => this.#cancelKeepAlive());
    this.#cancelKeepAlive = this.#keepAliveLater();
  }

  /** What the caller is sent. */
  get readable(): Readable {
    return this.#stream;
  }

  /**
   * Returns false when the reader is slow: what can be left out should be, until it drains. JSON holds no raw newline.
   *
   * @param id what a reader that lost its connection gives back as Last-Event-ID.
   */
  send(event: string, data: unknown, id?: number): boolean {
    const named = id === undefined ? "" : `id: ${id}\n`;
    return this.#write(`${named}event: ${event}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  /** Has the headers leave before there is an event to send. */
  open(): void {
    this.#write(": open\n\n");
  }

  end(): void {
    this.#cancelKeepAlive();
    this.#stream.end();
  }

  #keepAliveLater(): () => void {
    return this.#clock.after(KEEP_ALIVE_MS, () => {
      this.#cancelKeepAlive = this.#keepAliveLater();
      if (!this.#stream.writableNeedDrain) this.#write(": keep-alive\n\n");
    });
  }

  #write(text: string): boolean {
    // Its reader is gone; whoever sends hears of that by the request's signal.
    if (this.#stream.destroyed) return false;
    return this.#stream.write(text);
  }
}
