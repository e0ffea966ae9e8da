import { Agent, request } from "node:http";
import { seededRandom } from "@atelier/core";

export interface Asked {
  /** From the request's first byte to the answer's last. */
  readonly latencyMs: number;
  readonly headers: Readonly<Record<string, string | string[] | undefined>>;
  readonly bytes: number;
}

export interface OpenLoop {
  /** Answers that were 200, in the order in which they came. */
  readonly answers: readonly Asked[];
  readonly failures: readonly string[];
  /** By how much each request left later than it was to: the generator's own hurry. */
  readonly lateMs: readonly number[];
  readonly inFlightMean: number;
}

/**
 * Asks at a rate of its own, whatever the answers take (an open loop): Poisson arrivals, so that requests do not queue up
 * behind slow answers on the caller's side and hide them.
 */
export async function openLoop(options: {
  url: string;
  perSecond: number;
  seconds: number;
  body: (i: number) => object;
  headers: Readonly<Record<string, string>>;
}): Promise<OpenLoop> {
  const { url, perSecond, seconds, body, headers } = options;
  const agent = new Agent({ keepAlive: true, maxSockets: Number.POSITIVE_INFINITY });
  const random = seededRandom(1);
  const answers: Asked[] = [];
  const failures: string[] = [];
  const lateMs: number[] = [];
  const pending: Promise<void>[] = [];
  let inFlightMs = 0;

  const startMs = performance.now();
  let dueMs = startMs;
  for (let i = 0; ; i++) {
    dueMs += (-Math.log(1 - random.next()) * 1000) / perSecond;
    if (dueMs > startMs + seconds * 1000) break;
    for (let leftMs = dueMs - performance.now(); leftMs > 0; leftMs = dueMs - performance.now()) await pause(leftMs);
    lateMs.push(performance.now() - dueMs);
    pending.push(
      post(agent, url, JSON.stringify(body(i)), headers).then(
        (asked) => {
          inFlightMs += asked.latencyMs;
          answers.push(asked);
        },
        (error: unknown) => void failures.push(`${error} after ${((performance.now() - startMs) / 1000).toFixed(1)} s`),
      ),
    );
  }
  await Promise.all(pending);
  agent.destroy();
  return { answers, failures, lateMs, inFlightMean: inFlightMs / (seconds * 1000) };
}

/** A timer is a millisecond coarse; shorter waits let the answers in and look again. */
function pause(ms: number): Promise<void> {
  return new Promise((resolve) => (ms > 1 ? setTimeout(resolve, ms - 1) : setImmediate(resolve)));
}

function post(agent: Agent, url: string, body: string, headers: Readonly<Record<string, string>>): Promise<Asked> {
  return new Promise((resolve, reject) => {
    const startedMs = performance.now();
    const sent = request(url, {
      agent,
      method: "POST",
      headers: { "content-type": "application/json", "content-length": Buffer.byteLength(body), ...headers },
    });
    sent.on("response", (response) => {
      let bytes = 0;
      let text = "";
      response.on("data", (chunk: Buffer) => {
        bytes += chunk.length;
        if (response.statusCode !== 200) text += chunk;
      });
      response.on("end", () => {
        if (response.statusCode !== 200) reject(new Error(`${response.statusCode}: ${text.slice(0, 200)}`));
        else resolve({ latencyMs: performance.now() - startedMs, headers: response.headers, bytes });
      });
      response.on("error", reject);
    });
    sent.on("error", reject);
    sent.end(body);
  });
}
