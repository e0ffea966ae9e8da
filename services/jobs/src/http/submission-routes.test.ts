import { text } from "node:stream/consumers";
import { systemClock } from "@atelier/core";
import { buildServer, type HttpApp } from "@atelier/http";
import { createLogger } from "@atelier/telemetry";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { JobIntake, Submission } from "../intake/index.ts";
import type { JobCaller, Jobs } from "../ports.ts";
import { submissionRoutes } from "./submission-routes.ts";

describe("a submission's body", () => {
  it.each([
    { as: "text", type: "" },
    { as: "JSON", type: "Content-Type: application/json\r\n" },
  ])("may be a form, its options sent as $as before its sheet", async ({ type }) => {
    const options = `Content-Disposition: form-data; name="job"\r\n${type}\r\n{"template":{"prompt":"{product}"}}`;
    const reply = await send("multipart/form-data; boundary=B", form(options, SHEET));
    expect(reply.statusCode).toBe(422); // as the intake here says of everything
    expect(taken).toEqual({
      contentType: "text/csv",
      body: "product\nT恤\n",
      options: { template: { prompt: "{product}" } },
      idempotencyKey: "once",
      dryRun: false,
    });
  });

  it("may be the sheet itself, its options in the query", async () => {
    await send("text/csv; charset=gbk", "product\n", "/v1/jobs?template=a+{product}&dry_run=true");
    expect(taken).toMatchObject({
      contentType: "text/csv; charset=gbk",
      body: "product\n",
      options: { template: { prompt: "a {product}" } },
      dryRun: true,
    });
  });

  it.each([
    { content: form(SHEET_OF("picture")), says: "picture is a file; the only one that is read here is sheet" },
    { content: form('Content-Disposition: form-data; name="job"\r\n\r\n{'), says: "job is not JSON" },
    { content: form('Content-Disposition: form-data; name="job"\r\n\r\n{}'), says: "sheet is missing" },
    { content: form('Content-Disposition: form-data; name="x"\r\n\r\n1'), says: "unknown field x" },
    { content: "no form at all", says: "the form cannot be read" },
  ])("is refused with what is wrong with the form: $says", async ({ content, says }) => {
    const reply = await send("multipart/form-data; boundary=B", content);
    expect(reply.statusCode).toBe(400);
    expect(reply.json().error.message).toContain(says);
    expect(taken).toBeUndefined();
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

const SHEET = SHEET_OF("sheet");

function SHEET_OF(field: string): string {
  const disposition = `Content-Disposition: form-data; name="${field}"; filename="a.csv"`;
  return `${disposition}\r\nContent-Type: text/csv\r\n\r\nproduct\nT恤\n`;
}

function form(...parts: readonly string[]): string {
  return `${parts.map((part) => `--B\r\n${part}\r\n`).join("")}--B--\r\n`;
}

let app: HttpApp;
let taken: object | undefined;

beforeEach(() => {
  taken = undefined;
  app = buildServer({
    clock: systemClock,
    log: createLogger("jobs", "silent"),
    onBug: () => {},
    onEnd: () => {},
    bodyMaxBytes: 1_024,
    receiveTimeoutMs: 1_000,
    silenceMaxMs: 0,
    connectionsMax: 10,
  });
  app.decorateRequest("jobCaller", undefined);
  app.addHook("onRequest", async (request) => {
    request.jobCaller = { tenant: "shop" } as JobCaller;
  });
  const submit = async ({ contentType, body, options, idempotencyKey, dryRun }: Submission) => {
    taken = { contentType, body: await text(body), options, idempotencyKey, dryRun };
    return { type: "key_of_another" as const };
  };
  submissionRoutes(app, { jobs: {} as Jobs, intake: { submit } as unknown as JobIntake });
});

afterEach(() => app.close());

function send(contentType: string, payload: string, url = "/v1/jobs") {
  const headers = { "content-type": contentType, "idempotency-key": "once" };
  return app.inject({ method: "POST", url, headers, payload });
}
