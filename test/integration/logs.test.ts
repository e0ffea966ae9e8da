import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { sha256 } from "@atelier/core";
import { bearer, keysJson, testKey } from "@atelier/gateway/testing/keys";
import { TEST_BUNDLE } from "@atelier/worker/testing/test-bundle";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { until } from "../support/ends.ts";
import { freePorts } from "../support/free-ports.ts";
import { KillableService } from "../support/killable-service.ts";
import { OtlpReceiver } from "../support/otlp-receiver.ts";

const MARK = "zanzibar";
const SMALL = { prompt: `a ${MARK} mug`, negative_prompt: `no ${MARK}`, width: 128, height: 128, steps: 3, seed: 7 };
const TOKEN = "token-between-services-of-ours";
const key = testKey({ tenant: "shop", scopes: ["generate", "jobs", "usage"] });

/** A gateway, a worker and a jobs service as processes, all of which say all that they ever say. */
describe("what services log", () => {
  let receiver: OtlpReceiver;
  let folder: string;
  let url: string;
  let services: readonly KillableService[];
  let output: () => string;

  beforeAll(async () => {
    [receiver, folder] = await Promise.all([OtlpReceiver.start(), mkdtemp(join(tmpdir(), "atelier-logs-"))]);
    ({ url, services, output } = await system({}));
  });
  afterAll(async () => {
    await Promise.all(services.map((service) => service.kill()));
    await receiver.stop();
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  });

  it("names the request, its tenant and its trace on every line of it, in the gateway and the worker", async () => {
    const traceId = "b".repeat(32);
    await post("/generate", SMALL, { "x-request-id": "order-1", traceparent: `00-${traceId}-00f067aa0ba902b7-01` });
    await until(() => lines("order-1").some(({ service, msg }) => service === "worker" && msg === "request ended"));
    await until(() => lines("order-1").some(({ msg }) => msg === "request"));
    const own = lines("order-1");
    expect(new Set(own.map(({ service }) => service))).toEqual(new Set(["gateway", "worker"]));
    for (const line of own) expect(line).toMatchObject({ tenant: "shop", trace_id: traceId });
    expect(own.find(({ msg }) => msg === "request")).toMatchObject({
      method: "POST",
      route: "/generate",
      status: 200,
      duration_ms: expect.any(Number),
      cache: "miss",
      model: "atelier-tiny",
    });
  });

  it.each([
    ["a bad field", "/generate", JSON.stringify({ ...SMALL, steps: MARK }), 400],
    ["no JSON", "/generate", `{"prompt": "a ${MARK} mug"`, 400],
    ["a prompt out of range", "/generate", JSON.stringify({ ...SMALL, prompt: `(${MARK}:99)` }), 400],
    ["OpenAI's dialect", "/v1/images/generations", JSON.stringify({ prompt: MARK, size: MARK }), 400],
    ["A1111's dialect", "/sdapi/v1/txt2img", JSON.stringify({ ...SMALL, sampler_name: MARK, seed: 3 }), 422],
    ["an unknown route", `/v1/nothing`, "{}", 404],
  ])("sends the request's name back with a failure: %s", async (what, path, body, status) => {
    const name = `fails-${what.replaceAll(/\W/g, "-")}`;
    const answer = await fetch(`${url}${path}`, { method: "POST", headers: headers({ "x-request-id": name }), body });
    await answer.arrayBuffer();
    expect([answer.status, answer.headers.get("x-request-id")]).toEqual([status, name]);
    await until(() => lines(name).some(({ msg, status: logged }) => msg === "request" && logged === status));
  });

  it("names the submission on what is logged of its items", async () => {
    const defaults = { width: 128, height: 128, steps: 3 };
    const job = {
      rows: [{ product: MARK }, { product: `(${MARK}:99)` }],
      template: { prompt: "a {product}", defaults },
    };
    const submitted = await post("/v1/jobs", job, { "x-request-id": "sheet-1" });
    expect(submitted.status).toBe(201);
    await until(() =>
      lines("sheet-1").some(({ service, msg }) => service === "worker" && msg === "an item was not made"),
    );
    expect(lines("sheet-1").find(({ msg }) => msg === "a job was accepted")).toMatchObject({ tenant: "shop" });
    expect(lines("sheet-1").find(({ msg }) => msg === "an item was not made")).toMatchObject({
      tenant: "shop",
      item: "1",
      code: "INVALID_REQUEST",
    });
  });

  it("holds no prompt and no secret", async () => {
    await fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${key.text.slice(0, -1)}x` } });
    await fetch(`${url}/v1/models?api_key=${key.text}`, { headers: headers() });
    await until(() => output().includes('"route":"/v1/models"'));
    for (const secret of [MARK, key.text, key.text.slice(-20), TOKEN]) expect(output()).not.toContain(secret);
  });

  it("recognizes a prompt by its digest where ATELIER_LOG_PROMPTS allows that", async () => {
    const other = await system({ ATELIER_LOG_PROMPTS: "digest" });
    try {
      await (await postTo(`${other.url}/generate`, SMALL)).arrayBuffer();
      await until(() => other.output().includes(`${sha256(SMALL.prompt)} (${SMALL.prompt.length} characters)`));
      expect(other.output()).not.toContain(MARK);
    } finally {
      await Promise.all(other.services.map((service) => service.kill()));
    }
  });

  async function system(env: Readonly<Record<string, string>>) {
    const [gatewayPort, workerPort, jobsPort] = await freePorts(3);
    const queue = {
      ATELIER_QUEUE: `sqlite:${join(folder, `queue-${gatewayPort}.db`)}`,
      ATELIER_OBJECTS: `file:${join(folder, `objects-${gatewayPort}`)}`,
      ATELIER_LOG_LEVEL: "trace",
      ...receiver.env,
      ...env,
    };
    const worker = service("worker", {
      ATELIER_WORKER_LISTEN: `127.0.0.1:${workerPort}`,
      ATELIER_MODELS: TEST_BUNDLE,
      ATELIER_DEVICE: "simulated",
      ATELIER_SIMULATED_SPEED: "20",
      ...queue,
    });
    const gateway = service("gateway", {
      ATELIER_LISTEN: `127.0.0.1:${gatewayPort}`,
      ATELIER_WORKERS: `127.0.0.1:${workerPort}`,
      ATELIER_JOBS: `http://127.0.0.1:${jobsPort}`,
      ATELIER_INTERNAL_TOKEN: TOKEN,
      ATELIER_KEYS: keysJson([key]),
      ...queue,
    });
    const jobs = service("jobs", {
      ATELIER_JOBS_LISTEN: `127.0.0.1:${jobsPort}`,
      ATELIER_GATEWAY: `http://127.0.0.1:${gatewayPort}`,
      ATELIER_INTERNAL_TOKEN: TOKEN,
      ...queue,
    });
    const started = [gateway, worker, jobs];
    const said = started.map((each) => {
      const texts: string[] = [];
      each.heard = (text) => texts.push(text);
      return texts;
    });
    await Promise.all(started.map((each) => each.start()));
    const at = `http://127.0.0.1:${gatewayPort}`;
    await until(async () => (await fetch(`${at}/readyz`)).ok, 30_000);
    return { url: at, services: started, output: () => said.flat().join("") };
  }

  /** What was logged with this request's name, read. */
  function lines(requestId: string): readonly Line[] {
    return output()
      .split("\n")
      .filter((line) => line.startsWith("{") && line.endsWith("}") && line.includes(`"request_id":"${requestId}"`))
      .map((line) => JSON.parse(line) as Line);
  }

  function post(path: string, body: object, more: Readonly<Record<string, string>> = {}): Promise<Response> {
    return postTo(`${url}${path}`, body, more);
  }
});

type Line = Readonly<Record<string, unknown>>;

const headers = (more: Readonly<Record<string, string>> = {}) => ({
  "content-type": "application/json",
  ...bearer(key),
  ...more,
});

function postTo(to: string, body: object, more: Readonly<Record<string, string>> = {}): Promise<Response> {
  return fetch(to, { method: "POST", headers: headers(more), body: JSON.stringify(body) });
}

function service(name: "gateway" | "worker" | "jobs", env: Readonly<Record<string, string>>): KillableService {
  return new KillableService(name, join(import.meta.dirname, `../../services/${name}/src/main.ts`), env);
}
