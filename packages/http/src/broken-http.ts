import { STATUS_CODES } from "node:http";
import type { Socket } from "node:net";
import { ServingError } from "@atelier/core";
import { errorReply } from "./error-reply.ts";
import { requestIdHeaders, requestIdOf } from "./request-id.ts";

/** Answers what never became a request: bytes that are not HTTP, headers too large, a caller too slow to finish one. */
export function answerBrokenHttp(error: Error & { code?: string }, socket: Socket): void {
  if (!socket.writable || error.code === "ECONNRESET") {
    socket.destroy();
    return;
  }
  const { status, message } = MEANING[error.code ?? ""] ?? { status: 400, message: "the request is not valid HTTP" };
  const id = requestIdOf({});
  const body = JSON.stringify(errorReply(new ServingError("INVALID_REQUEST", message), id).body);
  const head = [
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}`,
    ...Object.entries(requestIdHeaders(id)).map(([name, value]) => `${name}: ${value}`),
    "content-type: application/json; charset=utf-8",
    `content-length: ${Buffer.byteLength(body)}`,
    "connection: close",
  ];
  socket.end(`${head.join("\r\n")}\r\n\r\n${body}`);
}

const MEANING: Record<string, { status: number; message: string }> = {
  HPE_HEADER_OVERFLOW: { status: 431, message: "the request's headers are too large" },
  ERR_HTTP_REQUEST_TIMEOUT: { status: 408, message: "the request was not sent completely in time" },
};
