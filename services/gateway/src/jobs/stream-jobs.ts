import type { IncomingHttpHeaders } from "node:http";
import { PassThrough, type Readable } from "node:stream";
import { type Clock, ServingError } from "@atelier/core";
import { EVENT_STREAM_TYPE } from "@atelier/http";
import { currentSpan } from "@atelier/telemetry";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { GatewayApp } from "../app.ts";
import type { Caller } from "../caller.ts";
import type { InFlight } from "../in-flight.ts";
import type { JobsUpstream } from "./jobs-upstream.ts";

export interface StreamJobsOptions {
  /** Undefined where no jobs service is configured. */
  readonly jobs: JobsUpstream | undefined;
  readonly internalToken: string | undefined;
  /** Why a caller that was let in has no right to be here any more. */
  readonly lost: (caller: Caller) => ServingError | undefined;
  readonly inFlight: Pick<InFlight, "checkOpen">;
  readonly clock: Clock;
}

const PATHS = [
  "/v1/jobs",
  "/v1/jobs/*",
  "/v1/presets",
  "/v1/presets/*",
  "/v1/dead-letters",
  "/v1/webhook-deliveries/*",
  "/v1/webhook-secret",
  "/v1/webhook-secret/*",
];
const METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"];

export const CALLER_HEADER = "x-atelier-caller";

/** What of a request the jobs service gets to see. A list of these, so that nobody outside can say who they are. */
const FORWARDED = [
  "accept",
  "content-type",
  "content-length",
  "content-encoding",
  "idempotency-key",
  "last-event-id",
  "prefer",
  "range",
  "if-none-match",
];

/** Of one connection (RFC 9110, section 7.6.1), or said by this gateway itself. */
const NOT_RETURNED = new Set(["connection", "keep-alive", "transfer-encoding", "trailer", "upgrade", "date"]);

/** Keys are revoked while events are read for hours. */
const RECHECK_MS = 1_000;

/**
 * The routes of bulk jobs, which the jobs service answers: requests and answers stream through, in both directions no
 * faster than their readers take them, and end together.
 */
export function streamJobs(app: GatewayApp, options: StreamJobsOptions): void {
  const events = new Set<PassThrough>();
  // Whoever reads events for hours goes on at another gateway, with the id that it has; what ends is waited for.
  app.addHook("preClose", async () => {
    for (const stream of events) stream.end();
  });
  void app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("*", (_request, payload, done) => done(null, payload));
    for (const url of PATHS) {
      scope.route({
        url,
        method: METHODS,
        schema: { hide: true }, // the jobs service documents them
        config: { scope: "jobs", upload: true },
        handler: (request, reply) => passOn(request, reply, { ...options, events }),
      });
    }
  });
}

interface PassOnOptions extends StreamJobsOptions {
  /** Those that are being read. */
  readonly events: Set<PassThrough>;
}

async function passOn(request: FastifyRequest, reply: FastifyReply, options: PassOnOptions): Promise<FastifyReply> {
  const { jobs, internalToken, inFlight, events } = options;
  inFlight.checkOpen();
  if (jobs === undefined) {
    throw new ServingError("NOT_FOUND", "bulk jobs are not set up here: ATELIER_JOBS names no jobs service");
  }
  const ended = new AbortController();
  const cancelWatch = watchCaller(request, ended, options);
  reply.raw.once("close", () => {
    cancelWatch();
    ended.abort(new ServingError("CANCELLED", "the caller went away"));
  });
  const answer = await jobs.call({
    method: request.method,
    path: request.url,
    headers: {
      ...forwarded(request.headers),
      "x-request-id": request.id,
      ...currentSpan().context,
      [CALLER_HEADER]: Buffer.from(JSON.stringify(toJobCaller(request.caller))).toString("base64url"),
      ...(internalToken !== undefined && { authorization: `Bearer ${internalToken}` }),
    },
    body: hasBody(request.headers) ? request.raw : null,
    signal: ended.signal,
  });
  for (const [name, value] of Object.entries(answer.headers)) {
    if (value !== undefined && !NOT_RETURNED.has(name)) reply.header(name, value);
  }
  const endless = answer.headers["content-type"]?.startsWith(EVENT_STREAM_TYPE) === true;
  return reply.code(answer.status).send(endless ? endable(answer.body, events) : answer.body);
}

/** `body`, which ends as if it were complete once its copy among `events` is ended. */
function endable(body: Readable, events: Set<PassThrough>): Readable {
  const copy = new PassThrough();
  events.add(copy);
  body.once("error", (error) => copy.destroy(error));
  copy.once("finish", () => body.unpipe(copy));
  copy.once("close", () => {
    events.delete(copy);
    body.destroy();
  });
  return body.pipe(copy);
}

/** As the jobs service reads it: services/jobs/src/ports.ts. */
function toJobCaller({ tenant, keyId, role, priority, weight, models }: Caller) {
  return {
    tenant,
    keyId: keyId ?? null,
    role,
    priority,
    weight: weight ?? 1,
    models: models === undefined ? null : [...models],
  };
}

function forwarded(headers: IncomingHttpHeaders): Record<string, string> {
  return Object.fromEntries(
    FORWARDED.flatMap((name) => (headers[name] === undefined ? [] : [[name, String(headers[name])]])),
  );
}

function hasBody(headers: IncomingHttpHeaders): boolean {
  return headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;
}

/** Ends the call once its key is good no more. */
function watchCaller(
  { caller }: FastifyRequest,
  ended: AbortController,
  { clock, lost }: StreamJobsOptions,
): () => void {
  let cancel = () => {};
  const look = () => {
    const reason = lost(caller);
    if (reason !== undefined) ended.abort(reason);
    else cancel = clock.after(RECHECK_MS, look);
  };
  cancel = clock.after(RECHECK_MS, look);
  return () => cancel();
}
