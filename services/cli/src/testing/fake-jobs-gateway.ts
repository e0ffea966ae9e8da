import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import type { JobJson } from "../client/job-json.ts";

/** A request as it came in. */
export interface Asked {
  readonly line: string;
  readonly headers: IncomingMessage["headers"];
  readonly body: string;
}

type Answer = (request: IncomingMessage, response: ServerResponse) => void | Promise<void>;

/** The gateway's side of bulk jobs, in the form that it documents; a test may answer a route in its own way. */
export async function fakeJobsGateway() {
  const asked: Asked[] = [];
  const answers = new Map<string, Answer>();
  const receivers = new Map<string, Answer>();
  let job = jobJson({});
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url!, "http://localhost");
    const receives = receivers.get(`${request.method} ${pathname}`);
    if (receives !== undefined) return receives(request, response);
    const own = answers.get(`${request.method} ${pathname}`);
    const body = await text(request).catch(() => "");
    asked.push({ line: `${request.method} ${request.url}`, headers: request.headers, body });
    if (own !== undefined) return own(request, response);
    const reply = (value: unknown, status = 200) => answerJson(response, value, status);
    switch (`${request.method} ${pathname}`) {
      case "POST /v1/jobs":
        return reply(job, 201);
      case "GET /v1/jobs":
        return reply({ jobs: [job], next: null });
      case "GET /v1/jobs/job_a":
      case "POST /v1/jobs/job_a/pause":
      case "POST /v1/jobs/job_a/resume":
      case "POST /v1/jobs/job_a/cancel":
        return reply(job);
      case "DELETE /v1/jobs/job_a":
        return void response.writeHead(204).end();
      default:
        return reply({ error: { code: "NOT_FOUND", message: `there is no ${pathname}`, request_id: "req-1" } }, 404);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    /** What it says of job_a from now on. */
    set job(value: JobJson) {
      job = value;
    },
    /** With the body read. */
    answer: (route: string, answer: Answer) => answers.set(route, answer),
    /** With the body still to come. */
    receive: (route: string, answer: Answer) => receivers.set(route, answer),
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

export function answerJson(response: ServerResponse, value: unknown, status = 200): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
}

export function jobJson({
  counts,
  ...change
}: Omit<Partial<JobJson>, "counts"> & { counts?: Partial<JobJson["counts"]> }): JobJson {
  const sum = { device_seconds: 12.5, cost: 0.5, currency: "EUR" };
  return {
    id: "job_a",
    name: "launch",
    status: "queued",
    held_for: null,
    priority: "bulk",
    item_count: 4,
    counts: { queued: 4, running: 0, done: 0, failed: 0, cancelled: 0, filtered: 0, ...counts },
    items_per_minute: 0,
    eta_ms: null,
    spent: sum,
    predicted: sum,
    skipped_count: 0,
    created_at: "2026-11-23T09:00:00.000Z",
    ended_at: null,
    ...change,
  };
}

export const sha256 = (bytes: string) => createHash("sha256").update(bytes).digest("hex");
