import { isUtf8 } from "node:buffer";
import { ServingError } from "@atelier/core";
import type { FastifyInstance } from "fastify";
import { HttpRefusal } from "./error-reply.ts";

/**
 * Bodies are JSON in UTF-8 and nothing else. The bytes are checked before they become text: a terminal that sends
 * another encoding (GBK is common) would otherwise have its Chinese replaced by question marks, and get a picture of that.
 */
export function acceptJsonOnly(app: FastifyInstance): void {
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("application/json", { parseAs: "buffer" }, (request, body, done) => {
    try {
      done(null, parseJson(body as Buffer, request.headers["content-encoding"]));
    } catch (error) {
      done(error as ServingError);
    }
  });
}

/** @throws ServingError INVALID_REQUEST when `body` is not JSON in UTF-8. */
function parseJson(body: Buffer, encoding: string | undefined): unknown {
  if (encoding !== undefined && encoding !== "identity") {
    throw new HttpRefusal(415, `a body with content-encoding ${encoding.slice(0, 60)} is not read here; send it plain`);
  }
  if (body.length === 0) throw new ServingError("INVALID_REQUEST", "the body is empty; it must be a JSON object");
  if (!isUtf8(body)) {
    throw new ServingError(
      "INVALID_REQUEST",
      "the body is not UTF-8; a terminal in another encoding can send a file with --data-binary",
    );
  }
  try {
    return JSON.parse(body.toString("utf8"));
  } catch (error) {
    throw new ServingError("INVALID_REQUEST", `the body is not JSON: ${(error as SyntaxError).message}`, {
      cause: error,
    });
  }
}
