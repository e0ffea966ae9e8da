import { FakeWorker } from "@atelier/gateway/testing";
import { bearer, keysJson, type TestKey, testKey } from "@atelier/gateway/testing/keys";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { type JobsWorld, startJobs } from "@atelier/jobs/testing/jobs-world";
import { Validator } from "@seriousme/openapi-schema-validator";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { freePorts } from "../support/free-ports.ts";

const TOKEN = "between-services-of-ours";

/** A gateway and a jobs service as they find each other; hands do what workers do. */
describe("bulk jobs through a gateway", () => {
  const shop = testKey({ tenant: "shop" });
  const press = testKey({ tenant: "press" });
  const small = testKey({ tenant: "small" });
  const operator = testKey({ tenant: "ops", role: "operator" });
  const admin = testKey({ tenant: "ops", role: "admin" });
  let worker: FakeWorker;
  let gateway: TestGateway;
  let jobs: JobsWorld;
  let model: string;

  beforeAll(async () => {
    const [port] = await freePorts(1);
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], {
      ATELIER_JOBS: `http://127.0.0.1:${port}`,
      ATELIER_INTERNAL_TOKEN: TOKEN,
      ATELIER_PRICE_PER_DEVICE_HOUR: "36",
      ATELIER_KEYS: keysJson([shop, press, small, operator, admin], [{ id: "small", images_per_month: 3 }]),
    });
    await gateway.until(allReady);
    model = [...gateway.fleet.views()[0]!.models.keys()][0]!;
    jobs = await startJobs({ ATELIER_GATEWAY: gateway.url, ATELIER_INTERNAL_TOKEN: TOKEN }, { port: port! });
  });
  afterAll(async () => {
    await jobs.stop();
    await gateway.stop();
    await worker.stop();
  });

  it("go from a sheet to an archive, priced by the gateway and booked there once", async () => {
    const job = await submitted(shop, "prompt\na mug\na bowl\n");
    expect(job).toMatchObject({ tenant: "shop", item_count: 2, predicted: { currency: "USD" } });
    const events = await ask(shop, `/v1/jobs/${job.id}/events`);
    const told = textUntil(events.body!, '"ended_at":"');
    await jobs.work.make(2, model);
    expect((await told).match(/^event: item$/gm)).toHaveLength(2);

    const archive = await ask(shop, `/v1/jobs/${job.id}/archive`);
    expect([archive.status, archive.headers.get("content-type")]).toEqual([200, "application/zip"]);
    expect(
      Buffer.from(await archive.arrayBuffer())
        .subarray(0, 2)
        .toString(),
    ).toBe("PK");
    const picture = await ask(shop, `/v1/jobs/${job.id}/items/1/image`);
    expect(await picture.text()).toBe("PNG of a bowl");

    const usage = async () => (await ask(admin, "/v1/usage?tenant=shop&group_by=key,model")).json();
    await until(async () => ((await usage()) as Usage).total.images === 2);
    expect(await usage()).toMatchObject({
      total: { requests: 0, images: 2, device_seconds: 0.025, cost: 0.00025 },
      rows: [{ key: shop.id, model, images: 2 }],
    });
  });

  it("are each tenant's own, whatever a caller says of itself", async () => {
    const job = await submitted(shop, "prompt\na mug\n");
    const forged = Buffer.from(JSON.stringify({ tenant: "shop", role: "admin" })).toString("base64url");
    for (const headers of [{}, { "x-atelier-caller": forged }]) {
      expect((await ask(press, `/v1/jobs/${job.id}`, { headers })).status).toBe(404);
      expect(await (await ask(press, "/v1/jobs", { headers })).json()).toEqual({ jobs: [], next: null });
    }
    expect((await ask(operator, `/v1/jobs/${job.id}`)).status).toBe(200);
    expect((await ask(press, "/v1/dead-letters")).status).toBe(403);
    expect((await fetch(`${jobs.url}/v1/jobs`, { headers: bearer(admin) })).status).toBe(401); // past the gateway
    expect((await ask(shop, `/v1/jobs/${job.id}`, { method: "DELETE" })).status).toBe(204);
  });

  it("are refused where they ask for more than the month has left, and held once it is used up", async () => {
    const refused = await ask(small, "/v1/jobs", { method: "POST", headers: CSV, body: "prompt\na\nb\nc\nd\n" });
    expect([refused.status, ((await refused.json()) as Failure).error.code]).toEqual([429, "QUOTA_EXCEEDED"]);
    const jobsOfIt = [await submitted(small, "prompt\na\nb\nc\n"), await submitted(small, "prompt\nd\n")];
    await jobs.work.make(3, model);
    await until(async () => {
      const { held_for } = (await (await ask(small, `/v1/jobs/${jobsOfIt[1]!.id}`)).json()) as Job;
      return held_for === "images_per_month";
    });
  });

  it("are refused for a model that the gateway does not have, by the line and the field", async () => {
    const answer = await ask(shop, "/v1/jobs", { method: "POST", headers: CSV, body: "prompt,model\na,other\n" });
    expect([answer.status, ((await answer.json()) as Failure).error]).toMatchObject([
      expect.toSatisfy((status: number) => status === 400 || status === 404),
      { field: "model" },
    ]);
  });

  it("are documented beside everything else, every reference leading somewhere", async () => {
    const document = (await (await fetch(`${gateway.url}/openapi.json`)).json()) as Document;
    expect(await new Validator().validate(structuredClone(document))).toEqual({ valid: true });
    for (const path of ["/v1/jobs", "/v1/jobs/{id}/archive", "/v1/presets/{name}", "/v1/generations"]) {
      expect(document["paths"]).toHaveProperty([path]);
    }
    const schemas = (document["components"] as { schemas: object }).schemas;
    for (const [, name] of JSON.stringify(document).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
      expect(schemas).toHaveProperty([name!]);
    }
  });

  function ask(key: TestKey, path: string, init: RequestInit = {}): Promise<Response> {
    return fetch(`${gateway.url}${path}`, { ...init, headers: { ...(init.headers as object), ...bearer(key) } });
  }

  async function submitted(key: TestKey, body: string): Promise<Job> {
    const answer = await ask(key, "/v1/jobs", { method: "POST", headers: CSV, body });
    expect(answer.status).toBe(201);
    return (await answer.json()) as Job;
  }
});

interface Job {
  readonly id: string;
  readonly held_for: string | null;
}

interface Failure {
  readonly error: { readonly code: string; readonly field?: string };
}

interface Usage {
  readonly total: { readonly images: number };
}

type Document = Record<string, unknown>;

const CSV = { "content-type": "text/csv" };

async function textUntil(body: AsyncIterable<Uint8Array>, end: string): Promise<string> {
  let text = "";
  for await (const chunk of body) {
    text += Buffer.from(chunk).toString();
    if (text.includes(end)) break;
  }
  return text;
}

async function until(holds: () => Promise<boolean>): Promise<void> {
  while (!(await holds())) await new Promise((resolve) => setTimeout(resolve, 50));
}
