import { ERROR_CODES, InvariantError, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import { errorBody, errorReply, HttpRefusal, readableError } from "./error-reply.ts";

describe("an error as HTTP says it", () => {
  it.each(ERROR_CODES)("has a status of its own and the one body (%s)", (code) => {
    const { status, body } = errorReply(new ServingError(code, "width 7", { field: "width" }), "r1");
    expect(status).toBeGreaterThanOrEqual(400);
    expect(errorBody.strict().parse(body)).toEqual({
      error: { code, message: "width 7", field: "width", request_id: "r1" },
    });
  });

  it("comes with Retry-After whenever it is a 503", () => {
    const unavailable = ERROR_CODES.map((code) => errorReply(new ServingError(code, ""), "r1")).filter(
      ({ status }) => status === 503,
    );
    expect(unavailable.length).toBeGreaterThan(0);
    for (const { headers } of unavailable) expect(Number(headers["retry-after"])).toBeGreaterThan(0);
  });

  it("keeps the status and headers of HTTP's own refusals", () => {
    const { status, headers } = errorReply(new HttpRefusal(405, "no", { headers: { allow: "GET" } }), "r1");
    expect([status, headers]).toEqual([405, { allow: "GET" }]);
  });
});

describe("what was thrown, made readable", () => {
  const read = (thrown: unknown) => readableError(thrown, { bodyMaxBytes: 1_000 });

  it("tells the caller nothing of our insides, and the log everything", () => {
    const thrown = new TypeError("cannot read secret of undefined");
    const error = read(thrown);
    expect(error.code).toBe("INTERNAL");
    expect(error.message).not.toContain("secret");
    expect(error.cause).toBe(thrown);
    expect(read(new InvariantError("x")).code).toBe("INTERNAL");
  });

  it("does not take another library's error code for one of fastify's", () => {
    expect(read(Object.assign(new Error("x"), { code: "ENOENT", statusCode: 400 })).code).toBe("INTERNAL");
  });
});
