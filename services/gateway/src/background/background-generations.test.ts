import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { createLogger } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import { LOCAL_CALLER } from "../caller.ts";
import type { GenerationContext, Served } from "../generations/ports.ts";
import type { ImageRequestDraft } from "../image-request.ts";
import { MemoryStore } from "../shared/memory-store.ts";
import { BreakableStore } from "../testing/breakable-store.ts";
import { BackgroundGenerations } from "./background-generations.ts";

describe("BackgroundGenerations on two gateways", () => {
  it("tells through either how a generation comes on, and gives its pictures", async () => {
    const { a, b, clock } = twoGateways();
    await a.start("gen_1");
    expect(await b.get("gen_1")).toMatchObject({ status: "running", seed: 7, model: "m" });

    a.progress("gen_1", { stepsDone: 5 });
    await tick(clock, 600);
    expect((await b.get("gen_1")).progress).toMatchObject({ stage: "denoise", stepsDone: 5, stepsTotal: 25 });

    await a.succeed("gen_1");
    for (const gateway of [a, b]) {
      expect(await gateway.get("gen_1")).toMatchObject({ status: "succeeded", result: { outcome: "miss" } });
      const { picture } = await gateway.background.picture("gen_1", TENANT, 1);
      expect(picture).toMatchObject({ mediaType: "image/png", seed: 8, data: Buffer.from([2]) });
    }
  });

  it("is queued until a worker takes it", async () => {
    const { a, b, clock } = twoGateways();
    const started = a.start("gen_1", { accepted: false });
    await tick(clock, 100);
    expect((await started).status).toBe("queued");
    expect(await b.get("gen_1")).toMatchObject({ status: "queued" });
  });

  it("refuses to the caller's face what is refused at once, and then there is no generation", async () => {
    const { a } = twoGateways();
    const refusal = new ServingError("INVALID_REQUEST", "no", { field: "steps" });
    await expect(a.start("gen_1", { refusal })).rejects.toBe(refusal);
    await expect(a.get("gen_1")).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect((await a.background.list(TENANT, 10)).records).toEqual([]);
  });

  it("tells why it failed", async () => {
    const { a, b } = twoGateways();
    await a.start("gen_1");
    await a.fail("gen_1", new ServingError("OUT_OF_MEMORY", "512 MiB are missing"));
    const error = { code: "OUT_OF_MEMORY", message: "512 MiB are missing" };
    expect(await b.get("gen_1")).toMatchObject({ status: "failed", error });
    await expect(b.background.picture("gen_1", TENANT, 0)).rejects.toMatchObject({ code: "CONFLICT" });
  });

  it.each(["a", "b"] as const)("cancels one of gateway a through gateway %s", async (through) => {
    const gateways = twoGateways();
    await gateways.a.start("gen_1");
    expect(await gateways[through].background.cancel("gen_1", TENANT)).toMatchObject({ status: "cancelled" });
    expect(gateways.a.aborted("gen_1")).toMatchObject({ code: "CANCELLED" });
    expect(await gateways.b.get("gen_1")).toMatchObject({ status: "cancelled" });
  });

  it("cancels with the next sign of life where the word was missed", async () => {
    const { a, b, clock, shared } = twoGateways();
    await a.start("gen_1");
    shared.mute = true;
    const cancelled = b.background.cancel("gen_1", TENANT);
    await tick(clock, 2_100);
    expect((await cancelled).status).toBe("cancelled");
    expect(a.aborted("gen_1")).toMatchObject({ code: "CANCELLED" });
  });

  it("leaves one that has ended as it is", async () => {
    const { a, b } = twoGateways();
    await a.start("gen_1");
    await a.succeed("gen_1");
    expect((await b.background.cancel("gen_1", TENANT)).status).toBe("succeeded");
  });

  it("is nobody else's", async () => {
    const { a, b } = twoGateways();
    await a.start("gen_1");
    await a.succeed("gen_1");
    const unknown = { code: "NOT_FOUND" };
    for (const { background } of [a, b]) {
      await expect(background.get("gen_1", "another")).rejects.toMatchObject(unknown);
      await expect(background.cancel("gen_1", "another")).rejects.toMatchObject(unknown);
      await expect(background.picture("gen_1", "another", 0)).rejects.toMatchObject(unknown);
      expect((await background.list("another", 10)).records).toEqual([]);
    }
  });

  it("has failed once its gateway gave no sign of life for the length of a lease, and says which gateway", async () => {
    const { a, b, clock } = twoGateways();
    await a.start("gen_1");
    await tick(clock, 5 * LEASE_MS);
    expect((await b.get("gen_1")).status).toBe("running");

    a.die();
    await tick(clock, LEASE_MS - 500);
    expect((await b.get("gen_1")).status).toBe("running");
    await tick(clock, 1_000);
    const error = { code: "WORKER_LOST", message: expect.stringContaining("gateway-a") };
    expect(await b.get("gen_1")).toMatchObject({ status: "failed", error });
  });

  it("stays failed when a gateway that was thought dead comes back", async () => {
    const { a, b, clock, shared } = twoGateways();
    await a.start("gen_1");
    await shared.inner.delete("gateway:gateway-a"); // its sign of life came too late
    expect((await b.get("gen_1")).status).toBe("failed");
    await a.succeed("gen_1");
    await tick(clock, 1_000);
    expect((await a.get("gen_1")).status).toBe("failed");
    expect((await b.get("gen_1")).status).toBe("failed");
  });

  it("waits for the end, through either gateway, and no longer than asked", async () => {
    const { a, b, clock } = twoGateways();
    await a.start("gen_1");
    const waits = [a.wait("gen_1", 30_000), b.wait("gen_1", 30_000), b.wait("gen_1", 5_000)] as const;
    await tick(clock, 5_000);
    expect((await waits[2]).status).toBe("running");
    await a.succeed("gen_1");
    expect((await waits[0]).status).toBe("succeeded");
    expect((await waits[1]).status).toBe("succeeded");
  });

  it("keeps nobody waiting while it stops", async () => {
    const { a, b } = twoGateways();
    await a.start("gen_1");
    const waiting = b.wait("gen_1", 30_000);
    await turn();
    b.background.stopWaiting();
    expect((await waiting).status).toBe("running");
  });

  it("lists a tenant's newest, whichever gateway made them, though both list at once", async () => {
    const { a, b, clock } = twoGateways();
    await Promise.all([a.start("gen_1"), b.start("gen_2"), a.start("gen_3")]);
    await tick(clock, 100);
    await b.start("gen_4");
    await a.start("gen_5", { tenant: "another" });
    for (const { background } of [a, b]) {
      const { records, complete } = await background.list(TENANT, 10);
      expect(complete).toBe(true);
      expect(records[0]!.id).toBe("gen_4");
      expect(records.map(({ id }) => id).sort()).toEqual(["gen_1", "gen_2", "gen_3", "gen_4"]);
      expect((await background.list(TENANT, 1)).records).toHaveLength(1);
    }
  });

  it("forgets one when its time is over", async () => {
    const { a, b, clock } = twoGateways();
    await a.start("gen_1");
    await a.succeed("gen_1");
    clock.advance(KEPT_MS);
    for (const gateway of [a, b]) await expect(gateway.get("gen_1")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("goes on without the shared store, and writes everything down when that is back", async () => {
    const { a, b, clock, shared } = twoGateways();
    shared.away = true;
    await a.start("gen_1");
    await a.succeed("gen_1");
    expect((await a.get("gen_1")).status).toBe("succeeded");
    expect((await a.background.picture("gen_1", TENANT, 0)).picture.data).toEqual(Buffer.from([1]));
    expect(await a.background.list(TENANT, 10)).toMatchObject({ complete: false, records: [{ id: "gen_1" }] });
    await expect(b.get("gen_1")).rejects.toMatchObject({ code: "OVERLOADED", retryAfterMs: 1_000 });

    shared.away = false;
    await tick(clock, LEASE_MS);
    expect((await b.get("gen_1")).status).toBe("succeeded");
    expect((await b.background.picture("gen_1", TENANT, 1)).picture.data).toEqual(Buffer.from([2]));
    expect(await b.background.list(TENANT, 10)).toMatchObject({ complete: true, records: [{ id: "gen_1" }] });
  });

  it("takes a damaged picture for none", async () => {
    const { a, b, shared } = twoGateways();
    await a.start("gen_1");
    await a.succeed("gen_1");
    await shared.inner.set("generation:gen_1:picture:0", "damaged", { ttlMs: 1_000 });
    await expect(b.background.picture("gen_1", TENANT, 0)).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect((await b.background.picture("gen_1", TENANT, 1)).picture.data).toEqual(Buffer.from([2]));
  });

  it("takes a damaged record for none", async () => {
    const { a, b, shared } = twoGateways();
    await a.start("gen_1");
    await shared.inner.set("generation:gen_1", '{"id":', { ttlMs: 1_000 });
    await expect(b.get("gen_1")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("is idle when all that it saw to has ended", async () => {
    const { a } = twoGateways();
    await a.start("gen_1");
    let idle = false;
    const stopped = a.background.idle().then(() => {
      idle = true;
    });
    await turn();
    expect(idle).toBe(false);
    await a.succeed("gen_1");
    await stopped;
    expect(a.background.count).toBe(0);
  });
});

const TENANT = LOCAL_CALLER.tenant;
const LEASE_MS = 3_000;
const KEPT_MS = 600_000;

function twoGateways() {
  const clock = new ManualClock(1_000);
  const shared = new BreakableStore(new MemoryStore(clock));
  return { a: gateway("gateway-a", clock, shared), b: gateway("gateway-b", clock, shared), clock, shared };
}

interface Run {
  readonly context: GenerationContext;
  readonly result: PromiseWithResolvers<Served>;
}

function gateway(gatewayId: string, clock: ManualClock, shared: BreakableStore) {
  const runs = new Map<string, Run>();
  const dead = { yet: false };
  const background = new BackgroundGenerations({
    clock: { nowMs: () => clock.nowMs(), after: (ms, run) => clock.after(ms, () => dead.yet || run()) },
    log: createLogger("gateway", "silent"),
    generations: {
      run: (draft: ImageRequestDraft, context: GenerationContext) => {
        const result = Promise.withResolvers<Served>();
        context.signal.addEventListener("abort", () => result.reject(context.signal.reason));
        runs.set(draft.id, { context, result });
        return result.promise;
      },
    },
    gatewayId,
    own: new MemoryStore(clock),
    shared,
    leaseMs: LEASE_MS,
    keptMs: KEPT_MS,
    noteFailure: (thrown) => thrown as ServingError,
  });
  return {
    background,
    start: (
      id: string,
      {
        tenant = TENANT,
        accepted = true,
        refusal,
      }: { tenant?: string; accepted?: boolean; refusal?: ServingError } = {},
    ) => {
      const started = background.start(draft(id), {
        caller: { ...LOCAL_CALLER, tenant },
        deadline: Deadline.after(clock, 60_000),
        priority: undefined,
        cache: { read: true, store: true, approximate: false },
      });
      const { context, result } = runs.get(id)!;
      if (refusal !== undefined) result.reject(refusal);
      if (accepted) context.onEvent?.({ type: "accepted", seed: 7, model: "m", stepsTotal: 25 });
      return started;
    },
    progress: (id: string, { stepsDone }: { stepsDone: number }) =>
      runs.get(id)!.context.onEvent?.({ type: "progress", stage: "denoise", stepsDone, stepsTotal: 25, imageIndex: 0 }),
    succeed: async (id: string) => {
      runs.get(id)!.result.resolve(served());
      await turn();
    },
    fail: async (id: string, error: ServingError) => {
      runs.get(id)!.result.reject(error);
      await turn();
    },
    aborted: (id: string) => runs.get(id)!.context.signal.reason as unknown,
    get: (id: string) => background.get(id, TENANT),
    wait: (id: string, maxMs: number) => background.wait(id, TENANT, maxMs),
    die: () => {
      dead.yet = true;
    },
  };
}

function draft(id: string): ImageRequestDraft {
  return { id, prompt: "a red mug" } as ImageRequestDraft;
}

function served(): Served {
  const picture = (byte: number, seed: number) => ({
    data: Uint8Array.of(byte),
    mediaType: "image/png",
    width: 64,
    height: 64,
    seed,
  });
  return {
    request: { seed: 7 },
    generation: { pictures: [picture(1, 7), picture(2, 8)], receipt: { model: "m" } },
    outcome: "miss",
  } as unknown as Served;
}

/** Whoever can get on does. */
async function turn(): Promise<void> {
  for (let i = 0; i < 10; i++) await new Promise<void>((resolve) => setImmediate(resolve));
}

async function tick(clock: ManualClock, ms: number): Promise<void> {
  for (let passed = 0; passed < ms; passed += 100) {
    clock.advance(100);
    await turn();
  }
}
