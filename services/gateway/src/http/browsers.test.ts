import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { FakeWorker } from "../testing/fake-worker.ts";
import { keysJson, testKey } from "../testing/keys.ts";
import { allReady, startGateway, type TestGateway } from "../testing/start-gateway.ts";

const SHOP = "https://shop.example";
const KEYS = keysJson([testKey()]);

let worker: FakeWorker;
let gateway: TestGateway | undefined;

beforeEach(async () => {
  worker = await FakeWorker.start();
});

afterEach(async () => {
  await gateway?.stop();
  gateway = undefined;
  await worker.stop();
});

describe("security headers", () => {
  it.each([
    ["a picture", "/generate", { accept: "image/png" }, { prompt: "a mug" }, 200],
    ["JSON", "/generate", {}, { prompt: "a mug" }, 200],
    ["a stream of events", "/generate", { accept: "text/event-stream" }, { prompt: "a mug" }, 200],
    ["a refusal", "/generate", {}, { prompt: 5 }, 400],
    ["a route that is not there", "/nowhere", {}, {}, 404],
  ])("are on %s", async (_what, path, headers, body, status) => {
    const answer = await post(await start({}), path, body, headers);
    await answer.arrayBuffer();
    expect(answer.status).toBe(status);
    expect(Object.fromEntries(answer.headers)).toMatchObject({
      "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
      "cross-origin-resource-policy": "same-origin",
      "referrer-policy": "no-referrer",
      "x-content-type-options": "nosniff",
      "x-frame-options": "DENY",
    });
    expect(answer.headers.get("strict-transport-security")).toBeNull(); // it is not for plain HTTP to say
  });
});

describe("pages of other origins", () => {
  it("are told nothing unless they are configured", async () => {
    const url = await start({});
    const preflight = await ask(url, SHOP);
    const answer = await post(url, "/generate", { prompt: "a mug" }, { origin: SHOP });
    expect(answer.status).toBe(200);
    for (const { headers } of [preflight, answer]) expect(headers.get("access-control-allow-origin")).toBeNull();
  });

  it("may ask and read every header of the answer where they are, without the browser's own credentials", async () => {
    const url = await start({ ATELIER_CORS_ORIGINS: `${SHOP}, http://localhost:3000` });
    const preflight = await ask(url, SHOP);
    expect(preflight.status).toBe(204);
    expect(Object.fromEntries(preflight.headers)).toMatchObject({
      "access-control-allow-origin": SHOP,
      "access-control-allow-methods": "GET, POST, PUT, PATCH, DELETE",
      "access-control-allow-headers": "authorization,content-type,idempotency-key",
      "access-control-max-age": "3600",
      vary: expect.stringContaining("Origin"),
    });
    expect(preflight.headers.get("access-control-allow-credentials")).toBeNull();

    const answer = await post(url, "/generate", { prompt: "a mug" }, { origin: SHOP, accept: "image/png" });
    await answer.arrayBuffer();
    expect(answer.headers.get("access-control-allow-origin")).toBe(SHOP);
    const exposed = answer.headers.get("access-control-expose-headers")!.split(", ");
    const ours = [...answer.headers.keys()].filter((name) => name.startsWith("x-atelier-"));
    expect(ours.length).toBeGreaterThan(3);
    expect(exposed).toEqual(expect.arrayContaining([...ours, "server-timing", "retry-after"]));
  });

  it("that are not among those are not let in by looking alike", async () => {
    const url = await start({ ATELIER_CORS_ORIGINS: SHOP });
    for (const origin of [`${SHOP}.evil.example`, "http://shop.example", "https://xshop.example", "null"]) {
      const preflight = await ask(url, origin);
      expect(preflight.headers.get("access-control-allow-origin")).not.toBe(origin);
      expect(preflight.headers.get("access-control-allow-origin")).not.toBe("*");
    }
  });

  it("ask without a key, and are told of a failure in words that their page can read", async () => {
    const url = await start({ ATELIER_CORS_ORIGINS: "*", ATELIER_KEYS: KEYS });
    expect((await ask(url, SHOP)).status).toBe(204);
    const refused = await post(url, "/generate", { prompt: "a mug" }, { origin: SHOP });
    expect(refused.status).toBe(401);
    expect(refused.headers.get("access-control-allow-origin")).toBe("*");
  });
});

async function start(env: Record<string, string>): Promise<string> {
  gateway = await startGateway([worker.address], env);
  await gateway.until(allReady);
  return gateway.url;
}

/** As a browser does before a call with JSON and a key. */
function ask(url: string, origin: string): Promise<Response> {
  return fetch(`${url}/generate`, {
    method: "OPTIONS",
    headers: {
      origin,
      "access-control-request-method": "POST",
      "access-control-request-headers": "authorization,content-type,idempotency-key",
    },
  });
}

function post(url: string, path: string, body: object, headers: Record<string, string> = {}): Promise<Response> {
  return fetch(`${url}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}
