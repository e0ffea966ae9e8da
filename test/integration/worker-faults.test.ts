import { startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import sharp from "sharp";
import { afterAll, describe, expect, it } from "vitest";
import { atEnd, until } from "../support/ends.ts";
import { ask, type Followed, follow, type GenerateAnswer } from "../support/generate-client.ts";
import { relayTo } from "../support/network-fault.ts";
import { startWorker, type TestWorker, WorkerPool } from "../support/workers.ts";

/** Worker processes with the embedded model on the CPU: a lost worker's picture comes later, with the same pixels. */
describe("a worker process that is killed", () => {
  it("before its first step: another makes the picture", async () => {
    const { workers, gateway } = await system(2);
    const whole = await undisturbed(gateway, SMALL);
    // Both stand still, so that whichever is chosen has not begun.
    for (const worker of workers) worker.signal("SIGSTOP");
    const answer = ask(gateway.url, SMALL);
    const chosen = await busyWorker(gateway, workers);
    for (const worker of workers) if (worker !== chosen) worker.signal("SIGCONT");
    await chosen.kill();
    const { image, receipt } = await answer;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ attempts: 2, seed: SMALL.seed });
    expect(receipt.resumed_at_steps).toBeUndefined();
  });

  it("in the middle of denoising: another goes on from the last checkpoint, and the caller sees one generation", async () => {
    const { workers, gateway } = await system(2);
    const whole = await undisturbed(gateway, LONG);
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    const chosen = await busyWorker(gateway, workers);
    const other = workers.find((worker) => worker !== chosen)!;
    const before = await rowsRun(other);
    await chosen.kill();

    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ attempts: 2, worker_id: other.id, worker_ids: [chosen.id, other.id] });
    const [resumedAt] = receipt.resumed_at_steps!; // the checkpoint of a step follows its progress
    expect(resumedAt).toBeGreaterThanOrEqual(19);
    // What the other ran is what was left, and no step more.
    expect(await rowsRun(other)).toBe(before + ROWS_PER_STEP * (LONG.steps - resumedAt!));
    expectOneGeneration(followed, LONG.steps);
  });

  it("while it decodes: another decodes, after the last step", async () => {
    const { workers, gateway } = await system(2);
    const whole = await undisturbed(gateway, LARGE);
    const followed = follow(gateway.url, LARGE);
    await followed.stage("image_decode"); // takes about half a second at this size on one thread
    const chosen = await busyWorker(gateway, workers);
    await chosen.kill();
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt.attempts).toBe(2);
    const stepsTotal = followed.events("accepted")[0]!["steps_total"] as number;
    expect(receipt.resumed_at_steps).toEqual([stepsTotal - 1]);
  });

  it("after it has finished, but before its answer came: another finishes it again", async () => {
    const [a, b] = await pool.take(2);
    const relay = await relayTo(a!.port);
    atEnd(() => relay.stop());
    const gateway = await open([`127.0.0.1:${relay.port}`]);
    const whole = await undisturbed(gateway, LONG);
    const before = await a!.counted("atelier_worker_requests_total", { outcome: "ok" });
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    await relay.silence();
    await until(async () => (await a!.counted("atelier_worker_requests_total", { outcome: "ok" })) > before);

    // To the gateway it has died now; another takes its place at the same address.
    await relay.cut();
    const successor = await relayTo(b!.port, relay.port);
    atEnd(() => successor.stop());
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ attempts: 2, worker_id: b!.id });
    expectOneGeneration(followed, LONG.steps);
  });

  it("and then its successor as well: the third finishes the picture, which began from another picture", async () => {
    const { workers, gateway } = await system(3);
    const blue = sharp({ create: { width: 128, height: 128, channels: 3, background: "#239" } });
    const body = { ...LONG, init_image: (await blue.png().toBuffer()).toString("base64"), strength: 0.8 };
    const whole = await undisturbed(gateway, body);
    const followed = follow(gateway.url, body);
    await followed.stepsDone(20);
    const first = await busyWorker(gateway, workers);
    await first.kill();
    await followed.stepsDone(40);
    const second = await busyWorker(
      gateway,
      workers.filter((worker) => worker !== first),
    );
    await second.kill();
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    const third = workers.find((worker) => worker !== first && worker !== second)!;
    expect(receipt).toMatchObject({ attempts: 3, worker_ids: [first.id, second.id, third.id] });
    expect(receipt.resumed_at_steps![0]).toBeGreaterThanOrEqual(39);
    expectOneGeneration(followed, 0.8 * LONG.steps);
  });

  it("after the first of three pictures: that one is kept, and the others are made elsewhere", async () => {
    const { workers, gateway } = await system(2);
    const three = { ...LONG, steps: 40, num_images: 3 }; // one picture after another
    const whole = await undisturbed(gateway, three);
    const followed = follow(gateway.url, three);
    await followed.stepsDone(three.steps + 15);
    const chosen = await busyWorker(gateway, workers);
    await chosen.kill();
    const { images, receipt } = await followed.completed;
    expect(images).toEqual(whole.images);
    expect(receipt).toMatchObject({ attempts: 2, seed: three.seed, num_images: 3 });
    // The first was not asked for again, or its last checkpoint would be here.
    expect(receipt.resumed_at_steps!.length).toBeLessThanOrEqual(2);
    expect(receipt.resumed_at_steps).not.toContain(three.steps - 1);
    expectOneGeneration(followed, 3 * three.steps);
  });
});

describe("a worker process that hangs", () => {
  it("is left for another, and what it says when it wakes up is nobody's", async () => {
    const { workers, gateway } = await system(2, { ATELIER_STALL_MS: "1000" });
    const whole = await undisturbed(gateway, LONG);
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    const chosen = await busyWorker(gateway, workers);
    chosen.signal("SIGSTOP");
    atEnd(() => chosen.signal("SIGCONT"));
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ attempts: 2 });
    expect(receipt.resumed_at_steps![0]).toBeGreaterThanOrEqual(19);
    expect(await metric(gateway, "atelier_gateway_attempts_total", "STALLED")).toBe(1);

    chosen.signal("SIGCONT");
    expect((await ask(gateway.url, LONG)).image).toBe(whole.image);
    expectOneGeneration(followed, LONG.steps);
    expect(gateway.bugs).toEqual([]);
  });
});

describe("a worker process that is slower than it was", () => {
  it("is overtaken by another from its last checkpoint, where hedging is on", async () => {
    const { workers, gateway } = await system(2, { ATELIER_HEDGE: "2", ATELIER_STALL_MS: "60000" });
    const whole = await undisturbed(gateway, LONG);
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    const chosen = await busyWorker(gateway, workers);
    chosen.signal("SIGSTOP");
    atEnd(() => chosen.signal("SIGCONT"));
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ attempts: 2 });
    expect(receipt.worker_id).not.toBe(chosen.id);
    expect(receipt.resumed_at_steps![0]).toBeGreaterThanOrEqual(19);
    expect(await metric(gateway, "atelier_gateway_hedges_total", "won")).toBe(1);
    expectOneGeneration(followed, LONG.steps);
  });
});

describe("when all workers are gone", () => {
  it("waits for one that restarts, and goes on there", async () => {
    const [first] = await pool.take(1);
    const gateway = await open([first!.address]);
    const whole = await undisturbed(gateway, LONG);
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    await first!.kill();
    const reborn = { ...WORKER, ATELIER_WORKER_LISTEN: first!.address, ATELIER_WORKER_ID: "reborn" };
    const second = await startWorker(reborn);
    atEnd(() => second.kill());
    const { image, receipt } = await followed.completed;
    expect(image).toBe(whole.image);
    expect(receipt).toMatchObject({ worker_id: "reborn" });
    expect(receipt.resumed_at_steps![0]).toBeGreaterThanOrEqual(19);
  });

  it("says so in the time that was given for another to come, and at once to who comes later", async () => {
    const { workers, gateway } = await system(2, { ATELIER_RETRY_WAIT_MS: "500" });
    const followed = follow(gateway.url, LONG);
    await followed.stepsDone(20);
    await Promise.all(workers.map((worker) => worker.kill()));
    await expect(followed.completed).rejects.toThrow(/WORKER_LOST/);
    await expect(ask(gateway.url, SMALL)).rejects.toThrow(/503 NO_WORKER/);
  });
});

/** Small enough for one thread; long enough to be killed in. No request is served from what another one left. */
const SMALL = { prompt: "a red mug", width: 128, height: 128, steps: 4, seed: 11, sampler: "dpmpp_2m" };
const LONG = { ...SMALL, steps: 70, seed: 12, sampler: "euler_a" };
const LARGE = { ...SMALL, width: 640, height: 640, steps: 3, seed: 13 };
const WORKER = { ATELIER_THREADS: "1", ATELIER_STEP_BATCH_MAX: "1" };
/** With guidance. */
const ROWS_PER_STEP = 2;

const pool = new WorkerPool(WORKER);
afterAll(() => pool.stop());

async function system(count: number, gatewayEnv: Readonly<Record<string, string>> = {}) {
  const workers = await pool.take(count);
  const addresses = workers.map(({ address }) => address);
  return { workers, gateway: await open(addresses, gatewayEnv) };
}

/** What a request is answered with when nothing happens; made once. */
async function undisturbed(gateway: TestGateway, body: object): Promise<GenerateAnswer> {
  const key = JSON.stringify(body);
  const made = wholes.get(key) ?? ask(gateway.url, body);
  wholes.set(key, made);
  expect((await made).receipt.attempts).toBe(1);
  return made;
}
const wholes = new Map<string, Promise<GenerateAnswer>>();

async function open(addresses: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<TestGateway> {
  const gateway = await startGateway(addresses, { ATELIER_CHECKPOINT_EVERY_STEPS: "1", ...env });
  atEnd(() => gateway.stop());
  await gateway.until((views) => views.every(({ ready }) => ready));
  return gateway;
}

/** The one that the gateway has given something to do. */
async function busyWorker(gateway: TestGateway, workers: readonly TestWorker[]): Promise<TestWorker> {
  const busy = () => gateway.fleet.views().find(({ inFlight }) => inFlight > 0)?.address;
  await until(() => workers.some(({ address }) => address === busy()));
  return workers.find(({ address }) => address === busy())!;
}

function rowsRun(worker: TestWorker): Promise<number> {
  return worker.counted("atelier_worker_step_batch_rows_sum");
}

/** Accepted once, steps that never go back and never pass their total, one end. */
function expectOneGeneration(followed: Followed, stepsTotal: number): void {
  expect(followed.events("accepted")).toHaveLength(1);
  const steps = followed.events("progress").map((event) => event["steps_done"] as number);
  expect(steps).toEqual(steps.toSorted((a, b) => a - b));
  expect(steps.at(-1)).toBe(stepsTotal);
  expect(followed.events("completed")).toHaveLength(1);
}

async function metric(gateway: TestGateway, name: string, label: string): Promise<number> {
  const text = await (await fetch(`${gateway.url}/metrics`)).text();
  const line = text.split("\n").find((each) => each.startsWith(`${name}{`) && each.includes(`"${label}"`));
  return Number(line?.slice(line.lastIndexOf(" ") + 1) ?? 0);
}
