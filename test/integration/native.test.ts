import { setTimeout as sleep } from "node:timers/promises";
import { FakeWorker, PICTURE } from "@atelier/gateway/testing";
import { reflectedClient } from "@atelier/gateway/testing/reflected-client";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { running, until } from "../support/ends.ts";
import { spawnGateway } from "../support/gateway-process.ts";
import { relayTo } from "../support/network-fault.ts";
import { type RedisProcess, startRedis } from "../support/redis.ts";

const LEASE_MS = 1_000;

/** A generation in the background, as the tests look at it. */
interface State {
  readonly id: string;
  readonly status: string;
}

describe("two gateways on one Redis", () => {
  let redis: RedisProcess;
  let worker: FakeWorker;
  let gateways: TestGateway[];

  beforeAll(async () => {
    redis = await startRedis();
  });
  afterAll(() => redis.stop());
  beforeEach(async () => {
    await redis.client.flushall();
    worker = await FakeWorker.start();
    gateways = await Promise.all([startOne(), startOne()]);
  });
  afterEach(async () => {
    for (const gateway of gateways) await gateway.stop();
    await worker.stop();
  });

  describe("generations in the background", () => {
    it("are read and waited for through either gateway, pictures too", async () => {
      const { release, answer } = held();
      worker.next(answer);
      const { id } = await start(0, { prompt: "a red mug", seed: 7, num_images: 2 });
      expect(await state(1, id)).toMatchObject({ id, status: "running", seed: 7 });
      const waiting = state(1, id, "?wait=20000");
      await sleep(100);
      release();
      expect(await waiting).toMatchObject({ status: "succeeded", receipt: { seed: 7 } });
      for (const i of [0, 1]) {
        const picture = await ask(i, "GET", `/v1/generations/${id}/images/1`);
        expect(picture.headers.get("x-atelier-seed")).toBe("8");
        expect(Buffer.from(await picture.arrayBuffer()).equals(Buffer.from(PICTURE))).toBe(true);
        const { generations } = await list(i);
        expect(generations).toMatchObject([{ id, status: "succeeded" }]);
      }
    });

    it("are cancelled through the other gateway, over HTTP and over gRPC", async () => {
      worker.next({ kind: "hang" }, { kind: "hang" });
      const first = await start(0, { prompt: "x" });
      const second = await start(0, { prompt: "y" });
      const cancelled = await ask(1, "DELETE", `/v1/generations/${first.id}`);
      expect([cancelled.status, await cancelled.json()]).toMatchObject([200, { status: "cancelled" }]);
      const client = await reflectedClient(gateways[1]!.grpcAddress!, "atelier.v1.Generation");
      const answer = await new Promise<{ state: object }>((resolve, reject) =>
        client["Cancel"]!({ id: second.id }, (error: Error | null, reply: { state: object }) =>
          error === null ? resolve(reply) : reject(error),
        ),
      );
      client.close();
      expect(answer.state).toMatchObject({ id: second.id, status: "GENERATION_STATUS_CANCELLED" });
      await until(() => worker.cancelled.length === 2);
      await until(() => gateways[0]!.inFlight.count === 0);
    });

    it("of a gateway that was killed have failed within the lease, and say whose they were", async () => {
      const doomed = await spawnGateway(env());
      worker.next({ kind: "hang" });
      const { id } = await begin(doomed.url, { prompt: "x" });
      expect(await state(0, id)).toMatchObject({ status: "running" });
      const waiting = state(1, id, "?wait=20000");
      doomed.child.kill("SIGKILL");
      const message = expect.stringMatching(/^gateway \S+ was lost/);
      expect(await waiting).toMatchObject({ status: "failed", error: { code: "WORKER_LOST", message } });
      expect(await state(0, id)).toMatchObject({ status: "failed" });
    });

    it("go on while Redis is away, where they were started, and are everywhere once it is back", async () => {
      const { release, answer } = held();
      worker.next(answer);
      const { id } = await start(0, { prompt: "x" });
      redis.pause();
      try {
        release();
        expect(await state(0, id, "?wait=20000")).toMatchObject({ status: "succeeded" });
        const began = await start(0, { prompt: "y" });
        expect(await state(0, began.id, "?wait=20000")).toMatchObject({ status: "succeeded" });
        expect((await ask(0, "GET", `/v1/generations/${began.id}/images/0`)).status).toBe(200);
        const elsewhere = await ask(1, "GET", `/v1/generations/${began.id}`);
        expect([elsewhere.status, elsewhere.headers.get("retry-after")]).toEqual([503, "1"]);
        const listed = await list(0);
        expect(listed).toMatchObject({ complete: false });
        expect(listed.generations).toHaveLength(2);
        expect((await ask(0, "GET", "/readyz")).status).toBe(200);
      } finally {
        redis.resume();
      }
      await until(async () => (await state(1, id)).status === "succeeded");
      await until(async () => (await list(1)).generations?.length === 2);
      expect((await ask(1, "GET", `/v1/generations/${id}/images/0`)).status).toBe(200);
    });
  });

  describe("idempotency keys", () => {
    it("make one generation of 20 requests at once, and one answer", async () => {
      const { release, answer } = held();
      worker.usually = answer;
      const asked = Array.from({ length: 20 }, (_, i) => generate(i, { prompt: "a red mug" }, "order-1"));
      await until(() => worker.requests.length > 0);
      await sleep(200);
      release();
      const answers = await Promise.all(asked);
      const texts = await Promise.all(answers.map((response) => response.text()));
      expect(answers.map(({ status }) => status)).toEqual(Array.from({ length: 20 }, () => 200));
      expect(new Set(texts).size).toBe(1);
      expect(worker.requests).toHaveLength(1);
      expect(answers.filter(({ headers }) => headers.has("idempotency-replayed"))).toHaveLength(19);
    });

    it("do so while Redis takes 200 ms to answer", async () => {
      const network = await running(relayTo(redis.port));
      const slow = await Promise.all(
        [1, 2].map(() =>
          startOne({ ATELIER_REDIS: `redis://127.0.0.1:${network.port}`, ATELIER_REDIS_TIMEOUT_MS: "2000" }),
        ),
      );
      await network.delay(200);
      const { release, answer } = held();
      worker.usually = answer;
      const asked = slow.flatMap(({ url }) =>
        [1, 2].map(() => post(url, { prompt: "x" }, { "idempotency-key": "order-1" })),
      );
      await until(() => worker.requests.length > 0);
      await sleep(700);
      release();
      const texts = await Promise.all(asked.map(async (response) => (await response).text()));
      expect(new Set(texts).size).toBe(1);
      expect(worker.requests).toHaveLength(1);
      for (const gateway of slow) await gateway.stop();
    });

    it("give the picture of one gateway again through the other, and refuse another request", async () => {
      const headers = { accept: "image/webp" };
      const first = await generate(0, { prompt: "a red mug" }, "order-1", headers);
      const again = await generate(1, { prompt: "a red mug" }, "order-1", headers);
      expect(Buffer.from(await again.arrayBuffer()).equals(Buffer.from(await first.arrayBuffer()))).toBe(true);
      expect(again.headers.get("x-atelier-receipt")).toBe(first.headers.get("x-atelier-receipt"));
      expect((await generate(1, { prompt: "a blue mug" }, "order-1", headers)).status).toBe(422);
      expect(worker.requests).toHaveLength(1);
    });

    it("of a gateway that was killed are free after the lease, and the retry draws the same seed", async () => {
      const doomed = await spawnGateway(env());
      worker.next({ kind: "hang" });
      const lost = post(doomed.url, { prompt: "x" }, { "idempotency-key": "order-1" }).catch(() => "lost");
      await until(() => worker.requests.length === 1);
      doomed.child.kill("SIGKILL");
      expect(await lost).toBe("lost");
      const retried = await generate(0, { prompt: "x" }, "order-1");
      expect([retried.status, retried.headers.has("idempotency-replayed")]).toEqual([200, false]);
      const [first, second] = worker.requests;
      expect(second!.parameters!.seed).toBe(first!.parameters!.seed);
    });

    it("hold on each gateway alone while Redis is away, and nobody is refused for it", async () => {
      await (await generate(0, { prompt: "x" }, "before")).text();
      redis.pause();
      try {
        const again = await generate(0, { prompt: "x" }, "before");
        expect(again.headers.get("idempotency-replayed")).toBe("true");
        const [first, second] = [
          await generate(0, { prompt: "x" }, "during"),
          await generate(0, { prompt: "x" }, "during"),
        ];
        expect([first.status, second.status]).toEqual([200, 200]);
        expect(await second.text()).toBe(await first.text());
        expect((await generate(1, { prompt: "x" }, "during")).status).toBe(200);
        expect(worker.requests).toHaveLength(3);
      } finally {
        redis.resume();
      }
      const metrics = await (await ask(0, "GET", "/metrics")).text();
      expect(metrics).toMatch(/atelier_gateway_idempotency_total\{outcome="unshared"[^}]*\} [1-9]/);
    });

    it("and generations in the background do without a Redis that is full", async () => {
      const full = await running(startRedis({ args: ["--maxmemory", "2mb", "--maxmemory-policy", "noeviction"] }));
      const filler = Buffer.alloc(100_000);
      for (let i = 0; i < 30; i++) await full.client.set(`filler ${i}`, filler).catch(() => {});
      const alone = await startOne({ ATELIER_REDIS: full.url });
      const keyed = () => post(alone.url, { prompt: "x" }, { "idempotency-key": "order-1" });
      const [first, again] = [await keyed(), await keyed()];
      expect([first.status, again.headers.get("idempotency-replayed")]).toEqual([200, "true"]);
      const { id } = await begin(alone.url, { prompt: "y" });
      const ended = await fetch(`${alone.url}/v1/generations/${id}?wait=20000`);
      expect(await ended.json()).toMatchObject({ status: "succeeded" });
      expect((await fetch(`${alone.url}/v1/generations/${id}/images/0`)).status).toBe(200);
      await alone.stop();
    });

    it("take a damaged answer for none, and make it again with the same seed", async () => {
      await (await generate(0, { prompt: "x" }, "order-1")).text();
      const [name] = await redis.client.keys("atelier:idempotency:*:answer");
      await redis.client.setrange(name!, 400, "damage");
      expect((await generate(1, { prompt: "x" }, "order-1")).headers.has("idempotency-replayed")).toBe(false);
      const [first, second] = worker.requests;
      expect(second!.parameters!.seed).toBe(first!.parameters!.seed);
    });
  });

  const env = (more: Record<string, string> = {}) => ({
    ATELIER_WORKERS: worker.address,
    ATELIER_REDIS: redis.url,
    ATELIER_LEASE_MS: String(LEASE_MS),
    ...more,
  });
  async function startOne(more: Record<string, string> = {}): Promise<TestGateway> {
    const gateway = await startGateway([worker.address], env({ ATELIER_GRPC_LISTEN: "127.0.0.1:0", ...more }));
    await gateway.until(allReady);
    return gateway;
  }
  const url = (i: number) => gateways[i % gateways.length]!.url;
  const ask = (i: number, method: string, path: string) => fetch(`${url(i)}${path}`, { method });
  const start = (i: number, body: object) => begin(url(i), body);
  const generate = (i: number, body: object, key: string, headers: Record<string, string> = {}) =>
    post(url(i), body, { "idempotency-key": key, ...headers });
  const state = async (i: number, id: string, query = "") =>
    (await (await ask(i, "GET", `/v1/generations/${id}${query}`)).json()) as State;
  const list = async (i: number) =>
    (await (await ask(i, "GET", "/v1/generations")).json()) as { generations: State[]; complete: boolean };
});

function post(gateway: string, body: object, headers: Record<string, string>): Promise<Response> {
  return fetch(`${gateway}/v1/generations`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
  });
}

async function begin(gateway: string, body: object): Promise<State> {
  return (await (await post(gateway, body, { prefer: "respond-async" })).json()) as State;
}

/** An answer that comes when it is let go. */
function held() {
  const { promise, resolve } = Promise.withResolvers<void>();
  return { release: resolve, answer: { kind: "answer", after: promise } as const };
}
