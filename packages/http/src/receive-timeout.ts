import type { Clock } from "@atelier/core";
import type { FastifyInstance, FastifyRequest } from "fastify";
import { answerBrokenHttp } from "./broken-http.ts";

declare module "fastify" {
  interface FastifyContextConfig {
    /** Bodies may take as long as they like, as long as they keep coming. */
    upload?: boolean;
  }
}

/**
 * Ends requests whose bodies do not arrive whole within `timeoutMs`; on routes for uploads, those of which nothing
 * arrived for as long. Node's own limit is one for a whole server, and would end every upload of a large sheet.
 */
export function endSlowBodies(app: FastifyInstance, { clock, timeoutMs }: { clock: Clock; timeoutMs: number }): void {
  app.addHook("onRequest", (request, reply, next) => {
    if (hasBody(request)) {
      watch(request, { clock, timeoutMs });
      reply.raw.once("finish", () => dropRest(request, clock));
    }
    next();
  });
}

/** Of a body that was answered before its end: its sender gets a moment to hear that, and is cut off if it goes on. */
function dropRest({ raw }: FastifyRequest, clock: Clock): void {
  if (raw.complete) return;
  raw.unpipe();
  raw.resume();
  const cancel = clock.after(LINGER_MS, () => raw.socket.destroy());
  raw.once("close", cancel);
}

const LINGER_MS = 2_000;

const hasBody = ({ headers }: FastifyRequest): boolean =>
  headers["transfer-encoding"] !== undefined || Number(headers["content-length"] ?? 0) > 0;

function watch({ raw, routeOptions }: FastifyRequest, { clock, timeoutMs }: { clock: Clock; timeoutMs: number }): void {
  const upload = routeOptions.config?.upload === true;
  let bytes = raw.socket.bytesRead;
  let unread = false;
  let cancel = () => {};
  const look = () => {
    // What lies here unread, or did at the last look, is not late: it is this side that takes its time.
    const moves = raw.socket.bytesRead > bytes || raw.readableLength > 0 || unread;
    bytes = raw.socket.bytesRead;
    unread = raw.readableLength > 0;
    if (upload && moves) cancel = clock.after(timeoutMs, look);
    else answerBrokenHttp(Object.assign(new Error("slow body"), { code: "ERR_HTTP_REQUEST_TIMEOUT" }), raw.socket);
  };
  cancel = clock.after(timeoutMs, look);
  const end = () => cancel();
  raw.once("end", end).once("close", end);
}
