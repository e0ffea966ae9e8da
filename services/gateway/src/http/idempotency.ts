import { Transform, type TransformCallback } from "node:stream";
import { type Canonical, canonicalDigest, ServingError } from "@atelier/core";
import { IDEMPOTENCY_HEADER, readIdempotencyKey } from "@atelier/http";
import type { FastifyInstance, FastifyReply, FastifyRequest } from "fastify";
import { isDryRun } from "../dialects/estimate.ts";
import { SEED_HEADER } from "./generation-edge.ts";
import type { IdempotencyKeys, KeyedWork } from "./idempotency-keys.ts";

declare module "fastify" {
  interface FastifyRequest {
    /** The request's own work under its Idempotency-Key; null where it has none. Its `seed` is for what is drawn. */
    keyedWork: KeyedWork | null;
  }
  interface FastifyContextConfig {
    /**
     * The route heeds Idempotency-Key: a request is answered once, and that answer given again. A function says what
     * makes two requests the same where the body alone does not.
     */
    idempotent?: boolean | ((request: FastifyRequest) => Canonical);
  }
}

export const REPLAYED_HEADER = "idempotency-replayed";

/** Above all pictures of a request in base64; what is larger is made again, with the same seed. */
const ANSWER_BYTES_MAX = 48 * 1024 * 1024;

export interface IdempotencyOptions {
  readonly keys: IdempotencyKeys;
  /** How long a request waits for the same one that is in progress. */
  readonly requestTimeoutMs: number;
}

/** Idempotency keys for every route registered after it whose config says `idempotent`. */
export function heedIdempotencyKeys(app: FastifyInstance, { keys, requestTimeoutMs }: IdempotencyOptions): void {
  app.decorateRequest("keyedWork", null);

  // After the body was read and found valid: what is refused before binds no key.
  app.addHook("preHandler", async (request, reply) => {
    const { idempotent } = request.routeOptions.config;
    const header = request.headers[IDEMPOTENCY_HEADER];
    if (idempotent === undefined || idempotent === false || header === undefined || isDryRun(request)) return;
    const gone = new AbortController();
    reply.raw.once("close", () => gone.abort(new ServingError("CANCELLED", "the caller went away")));
    const entry = await keys.enter({
      tenant: request.caller.tenant,
      key: readIdempotencyKey(String(header)),
      fingerprint: fingerprintOf(request, idempotent === true ? undefined : idempotent(request)),
      waitMs: requestTimeoutMs,
      signal: gone.signal,
    });
    if ("replay" in entry) {
      const { status, headers, body } = entry.replay;
      return reply.code(status).headers(headers).header(REPLAYED_HEADER, "true").send(body);
    }
    request.keyedWork = entry.work;
    // Whatever happens to the answer below, nobody waits for a request that is over.
    if (reply.raw.closed) await entry.work.release({ forget: false });
    else reply.raw.once("close", () => void entry.work.release({ forget: false }));
  });

  app.addHook("onSend", async (request, reply, payload) => {
    const work = request.keyedWork;
    if (work === null) return payload;
    const { statusCode: status } = reply;
    if (status >= 300) {
      // A refusal did nothing, and the caller may mend its request; a failure of ours it will send again as it is.
      await work.release({ forget: status < 499 });
      return payload;
    }
    const finish = (body: Buffer) =>
      body.length > ANSWER_BYTES_MAX
        ? work.release({ forget: false })
        : work.finish({ status, headers: keptHeaders(reply), body });
    if (typeof payload === "string" || Buffer.isBuffer(payload)) {
      await finish(Buffer.from(payload));
      return payload;
    }
    if (!isStream(payload)) return payload;
    // A stream that failed on its way says so in the status that was noted for it, long after its headers left.
    const tap = new Tap((body) => (reply.raw.statusCode < 300 ? finish(body) : work.release({ forget: false })));
    payload.on("error", (error) => tap.destroy(error));
    tap.on("close", () => payload.destroy());
    return payload.pipe(tap);
  });
}

/** All that decides what is answered. */
function fingerprintOf(request: FastifyRequest, said: Canonical | undefined): string {
  const { method, routeOptions, body, headers, query } = request;
  return canonicalDigest({
    route: `${method} ${routeOptions.url}`,
    query: query as Canonical,
    body: said ?? (body as Canonical),
    accept: headers.accept ?? "",
    prefer: String(headers["prefer"] ?? ""),
  });
}

/** Those that say what the answer is; the rest is of one connection, one moment or one origin. */
function keptHeaders(reply: FastifyReply): Record<string, string> {
  const kept = Object.entries(reply.getHeaders()).filter(([name]) => KEPT_HEADERS.has(name));
  return Object.fromEntries(kept.map(([name, value]) => [name, String(value)]));
}

const KEPT_HEADERS = new Set([
  "content-type",
  "cache-control",
  "location",
  "link",
  "preference-applied",
  "x-accel-buffering",
  SEED_HEADER,
  "x-atelier-cache",
  "x-atelier-simulated",
  "x-atelier-receipt",
  "x-atelier-ignored",
]);

function isStream(payload: unknown): payload is NodeJS.ReadableStream & { destroy(error?: Error): void } {
  return typeof (payload as { pipe?: unknown } | null)?.pipe === "function";
}

/** Passes a stream on and keeps what went through, up to what is kept at all; its end waits until that is noted. */
class Tap extends Transform {
  readonly #whole: (body: Buffer) => Promise<void>;
  readonly #chunks: Buffer[] = [];
  #bytes = 0;

  constructor(whole: (body: Buffer) => Promise<void>) {
    super();
    this.#whole = whole;
  }

  override _transform(chunk: Buffer, _encoding: BufferEncoding, done: TransformCallback): void {
    if (this.#bytes <= ANSWER_BYTES_MAX) this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    done(null, chunk);
  }

  override _flush(done: TransformCallback): void {
    this.#whole(Buffer.concat(this.#chunks)).then(() => done(), done);
  }
}
