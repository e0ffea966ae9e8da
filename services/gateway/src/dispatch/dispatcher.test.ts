import { Deadline, ManualClock, ServingError, seededRandom } from "@atelier/core";
import { Stage } from "@atelier/proto";
import { createRegistry } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { PassingLatent } from "../generations/ports.ts";
import type { GenerationEvent, ImageRequest } from "../image-request.ts";
import { ScriptedFleet } from "../testing/scripted-fleet.ts";
import { imageRequest } from "../testing/views.ts";
import { ByteBudget } from "./byte-budget.ts";
import { checkpointInterval } from "./checkpoint-interval.ts";
import { createDispatchMetrics } from "./dispatch-metrics.ts";
import { Dispatcher, type DispatchLimits } from "./dispatcher.ts";

describe("a request whose worker is lost", () => {
  it("goes on elsewhere from its newest checkpoint, and its caller sees one generation", async () => {
    const { fleet, ask, events } = rig(["a", "b"]);
    const answer = ask({ steps: 20 });
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    a!.step(3);
    a!.checkpoint(0, 4);
    a!.step(8);
    a!.checkpoint(0, 8);
    a!.step(9);
    a!.fail("WORKER_LOST");

    const [, b] = await fleet.calls(2);
    expect([a!.address, b!.address]).toEqual(["a", "b"]);
    expect(b!.request.resumeFrom?.map(({ stepIndex }) => stepIndex)).toEqual([8]);
    b!.accepted(20);
    b!.step(0, Stage.TEXT_ENCODE);
    b!.step(9); // has caught up
    b!.step(20);
    b!.finish({ resumedAtSteps: [8] });

    const { receipt, pictures } = await answer;
    expect(pictures).toHaveLength(1);
    expect(receipt).toMatchObject({ attempts: 2, workerIds: ["a", "b"], workerId: "b", resumedAtSteps: [8] });
    expect(events()).toEqual(["accepted 20", "denoise 3", "denoise 8", "denoise 9", "denoise 9", "denoise 20"]);
  });

  it("keeps its finished pictures, and has the others made as requests of their own seeds", async () => {
    const { fleet, ask, events } = rig(["a", "b", "c"]);
    const answer = ask({ seed: 100, numImages: 4, steps: 10 });
    const [a] = await fleet.calls(1);
    a!.accepted(40);
    a!.checkpoint(1, 5);
    a!.step(12);
    a!.image(0);
    a!.image(2);
    a!.fail("WORKER_LOST");

    const [, second, fourth] = await fleet.calls(3);
    const asked = [second!, fourth!].map(({ request }) => [
      request.parameters?.seed,
      request.parameters?.numImages,
      request.resumeFrom?.length,
    ]);
    expect(asked).toEqual([
      [101n, 1, 1],
      [103n, 1, 0],
    ]);
    for (const call of [fourth!, second!]) {
      call.accepted(10);
      call.step(7);
      call.finish();
    }
    const { pictures, receipt } = await answer;
    expect(pictures.map(({ seed }) => seed)).toEqual([100, 101, 102, 103]);
    expect(receipt).toMatchObject({ seed: 100, numImages: 4, attempts: 3 });
    // Of 40 steps the two finished pictures have 20.
    expect(events()).toEqual(["accepted 40", "denoise 12", "denoise 27", "denoise 34"]);
  });

  it("asks for pictures that follow each other in one request", async () => {
    const { fleet, ask } = rig(["a", "b"]);
    void ask({ seed: 5, numImages: 3 }).catch(() => {});
    const [a] = await fleet.calls(1);
    a!.image(0);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    expect(b!.request.parameters).toMatchObject({ seed: 6n, numImages: 2 });
  });

  it("has its last picture finished again where all came and only the receipt did not", async () => {
    const { fleet, ask } = rig(["a", "b"]);
    const answer = ask({ numImages: 2 });
    const [a] = await fleet.calls(1);
    a!.checkpoint(1, 18);
    a!.image(0, "first");
    a!.image(1, "second");
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    expect(b!.request.parameters).toMatchObject({ numImages: 1, seed: 2n });
    expect(b!.request.resumeFrom?.map(({ stepIndex }) => stepIndex)).toEqual([18]);
    b!.finish();
    const { pictures, receipt } = await answer;
    expect(pictures.map(({ data }) => Buffer.from(data).toString())).toEqual(["first", "second"]);
    expect(receipt.numImages).toBe(2);
  });

  it("does without a checkpoint that another model made, and refuses to mix the pictures of two", async () => {
    const { fleet, ask } = rig(["a", "b"]);
    fleet.change("b", { digest: "sha256:other" });
    const answer = ask({ numImages: 2 });
    const [a] = await fleet.calls(1);
    a!.checkpoint(1, 8);
    a!.image(0);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    expect(b!.request.resumeFrom).toEqual([]);
    b!.finish();
    await expect(answer).rejects.toMatchObject({
      code: "WORKER_LOST",
      message: expect.stringMatching(/the model m changed/),
    });
  });

  it("goes on with the latent it began from, but begins from noise at a worker with another model or device", async () => {
    const { fleet, ask } = rig(["a", "b", "c"]);
    const shape = { channels: 4, height: 32, width: 32 };
    const made = { modelDigest: "sha256:00", simulated: false };
    fleet.change("c", { digest: "sha256:11" });
    const answer = ask({ steps: 20, startLatent: { ...shape, ...made, stepIndex: 6, latent: new Uint8Array(16) } });
    const [a] = await fleet.calls(1);
    a!.accepted(14);
    a!.checkpoint(0, 10);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    expect(b!.request).toMatchObject({ startLatent: { stepIndex: 6, shape }, resumeFrom: [{ stepIndex: 10 }] });
    b!.fail("WORKER_LOST");
    const [, , c] = await fleet.calls(3);
    expect([c!.request.startLatent, c!.request.resumeFrom]).toEqual([undefined, []]);
    c!.accepted(20);
    c!.finish();
    await answer;
  });

  it("begins from noise again where the next worker refuses its checkpoint, silently until it has caught up", async () => {
    const { fleet, ask, events } = rig(["a", "b"]);
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    a!.step(8);
    a!.checkpoint(0, 8);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    b!.fail("INVALID_REQUEST", { field: "resume_from" });
    const [, , again] = await fleet.calls(3);
    expect(again!.request.resumeFrom).toEqual([]);
    again!.accepted(20);
    for (const step of [1, 7, 8, 9]) again!.step(step);
    again!.finish();
    expect((await answer).receipt.attempts).toBe(3);
    expect(events()).toEqual(["accepted 20", "denoise 8", "denoise 8", "denoise 9"]);
  });

  it("fails as the last worker did once three have", async () => {
    const { fleet, ask, metric } = rig(["a", "b", "c", "d"]);
    const answer = ask({});
    for (const n of [1, 2, 3]) (await fleet.calls(n)).at(-1)!.fail("WORKER_LOST");
    await expect(answer).rejects.toMatchObject({
      code: "WORKER_LOST",
      message: expect.stringMatching(/worker c was lost/),
    });
    expect(fleet.all.map(({ address }) => address)).toEqual(["a", "b", "c"]);
    expect(fleet.released).toEqual(["a WORKER_LOST", "b WORKER_LOST", "c WORKER_LOST"]);
    expect(await metric("atelier_gateway_attempts_total")).toEqual({ WORKER_LOST: 3 });
    expect(await metric("atelier_gateway_retries_total")).toEqual({ WORKER_LOST: 2 });
  });

  it("is told of in the log, and a caller's own mistake is not", async () => {
    const { fleet, ask, log } = rig(["a", "b"]);
    const answer = ask({ id: "req_7" });
    (await fleet.calls(1))[0]!.fail("WORKER_LOST");
    (await fleet.calls(2))[1]!.fail("INVALID_REQUEST");
    await expect(answer).rejects.toMatchObject({ code: "INVALID_REQUEST" });
    expect(log).toMatchObject([{ request: "req_7", worker: "a", code: "WORKER_LOST" }]);
  });

  it("takes its other slices back when one of them fails for good", async () => {
    const { fleet, ask } = rig(["a", "b", "c"]);
    const answer = ask({ numImages: 3 });
    const [a] = await fleet.calls(1);
    a!.image(1);
    a!.fail("WORKER_LOST");
    const [, first, third] = await fleet.calls(3);
    first!.fail("NUMERIC_FAILURE");
    await expect(answer).rejects.toMatchObject({ code: "NUMERIC_FAILURE" });
    expect(third!.cancelled).toBe(true);
    expect(fleet.inFlight).toBe(0);
  });
});

describe("who takes over", () => {
  it("is the same worker once it is back, where there is no other", async () => {
    const { fleet, ask, clock } = rig(["a"]);
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.checkpoint(0, 12);
    fleet.change("a", { ready: false });
    a!.fail("WORKER_LOST");
    await clock.advance(5_000);
    expect(fleet.all).toHaveLength(1);
    fleet.change("a", { ready: true });
    await clock.advance(3_000);
    const [, again] = await fleet.calls(2);
    expect(again!.request.resumeFrom).toHaveLength(1);
    again!.finish();
    expect((await answer).receipt.workerIds).toEqual(["a", "a"]);
  });

  it("is nobody where none comes in time: half of what the request has left, and 15 s at most", async () => {
    const { fleet, ask, clock } = rig(["a"], { deadlineMs: 10_000 });
    const answer = ask({}).then(
      () => "made",
      (error: ServingError) => error.code,
    );
    const [a] = await fleet.calls(1);
    fleet.change("a", { ready: false });
    a!.fail("WORKER_LOST");
    await clock.advance(5_001);
    expect(await answer).toBe("WORKER_LOST");
  });

  it.each(["OVERLOADED", "OUT_OF_MEMORY"] as const)("is another worker, or none, where one is %s", async (code) => {
    const two = rig(["a", "b"]);
    const answered = two.ask({});
    (await two.fleet.calls(1))[0]!.fail(code);
    (await two.fleet.calls(2))[1]!.finish();
    expect((await answered).receipt.workerIds).toEqual(["a", "b"]);

    const one = rig(["a"]);
    const refused = one.ask({});
    (await one.fleet.calls(1))[0]!.fail(code);
    await expect(refused).rejects.toMatchObject({ code });
    expect(one.fleet.all).toHaveLength(1);
  });

  it("is whoever has room first, once the request was accepted: it waits rather than be refused", async () => {
    const { fleet, ask, clock } = rig(["a", "b"]);
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    a!.checkpoint(0, 4);
    fleet.change("a", { ready: false });
    a!.fail("DRAINING");
    for (const n of [2, 3, 4, 5, 6]) {
      const b = (await fleet.calls(n)).at(-1)!;
      expect([b.address, b.request.resumeFrom?.length]).toEqual(["b", 1]);
      b.fail("OVERLOADED");
      await clock.advance(1_700); // 0.1 s, 0.2 s, ... with jitter
    }
    (await fleet.calls(7)).at(-1)!.finish();
    expect((await answer).receipt.workerIds.slice(0, 2)).toEqual(["a", "b"]);
  });

  it("is nobody where none has room in time, although the request was accepted", async () => {
    const { fleet, ask, clock } = rig(["a", "b"]);
    const failed = ask({}).catch((error: ServingError) => error.code);
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    fleet.change("a", { ready: false });
    a!.fail("WORKER_LOST");
    let refused = 0;
    for (let ms = 0; ms < 16_000; ms += 100) {
      const call = fleet.all.at(-1)!;
      if (!call.over && call.address === "b") {
        call.fail("OVERLOADED");
        refused += 1;
      }
      await clock.advance(100);
    }
    expect(await failed).toBe("OVERLOADED");
    expect(refused).toBeLessThan(15); // backs off
    expect(fleet.inFlight).toBe(0);
  });

  it("goes on from what a leaving worker handed back, as often as workers leave, whatever the budget", async () => {
    const { fleet, ask } = rig(["a", "b", "c", "d", "e"], { retriesMax: 0, retryShare: 0 });
    const answer = ask({});
    for (const n of [1, 2, 3, 4]) {
      const call = (await fleet.calls(n)).at(-1)!;
      call.checkpoint(0, 4 * n);
      call.fail("DRAINING");
    }
    const last = (await fleet.calls(5)).at(-1)!;
    expect(last.request.resumeFrom?.[0]?.stepIndex).toBe(16);
    last.finish();
    expect((await answer).receipt.workerIds).toEqual(["a", "b", "c", "d", "e"]);
  });

  it.each(["INVALID_REQUEST", "NUMERIC_FAILURE", "DEADLINE_EXCEEDED", "MODEL_NOT_FOUND", "INTERNAL"] as const)(
    "is nobody for %s: it would be the same again",
    async (code) => {
      const { fleet, ask } = rig(["a", "b"]);
      const answer = ask({});
      (await fleet.calls(1))[0]!.fail(code);
      await expect(answer).rejects.toMatchObject({ code });
      expect(fleet.all).toHaveLength(1);
    },
  );

  it("is nobody for a caller who went away, and none is asked again", async () => {
    const { fleet, ask, abort, clock } = rig(["a", "b"]);
    const answer = ask({});
    const [a] = await fleet.calls(1);
    const gone = new ServingError("CANCELLED", "gone");
    abort(gone);
    await expect(answer).rejects.toBe(gone);
    expect(a!.cancelled).toBe(true);
    await clock.advance(60_000);
    expect([fleet.all.length, fleet.inFlight]).toEqual([1, 0]);
  });

  it("is nobody once the deadline has passed", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { deadlineMs: 1_000 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    expect(a!.deadlineAtMs).toBe(1_000);
    await Promise.all([
      expect(answer).rejects.toMatchObject({ code: "WORKER_LOST" }),
      clock.advance(1_000).then(() => a!.fail("WORKER_LOST")),
    ]);
    expect(fleet.all).toHaveLength(1);
  });

  it("is nobody once the gateway's budget of retries is used up", async () => {
    const { fleet, ask, metric } = rig(["a", "b"], { retriesMax: 2, retryShare: 0.25 });
    let asked = 0;
    const outcomes: string[] = [];
    for (let i = 0; i < 8; i++) {
      const answer = ask({}).then(
        () => "made",
        (error: ServingError) => error.code,
      );
      asked += 1;
      (await fleet.calls(asked)).at(-1)!.fail("WORKER_LOST");
      if (await fleet.callsWithin(asked + 1)) {
        asked += 1;
        fleet.all.at(-1)!.finish();
      }
      outcomes.push(await answer);
    }
    // Two were saved up; then one request in four earns another. The first found the budget full.
    expect(outcomes.filter((outcome) => outcome === "made")).toHaveLength(3);
    expect(outcomes.slice(0, 2)).toEqual(["made", "made"]);
    expect(await metric("atelier_gateway_retries_refused_total")).toEqual({ "": 5 });
  });
});

describe("a worker that accepts and never answers", () => {
  it("is left for another from the last checkpoint, after three times what it is predicted to be busy for", async () => {
    const { fleet, ask, clock, metric } = rig(["a", "b"], { stallMs: 1_000 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    a!.checkpoint(0, 4);
    fleet.change("a", { backlogMs: { interactive: 500, standard: 500, bulk: 0 } });
    await clock.advance(2_900);
    expect(a!.cancelled).toBe(false);
    await clock.advance(200);
    expect(a!.cancelled).toBe(true);
    const [, b] = await fleet.calls(2);
    expect(b!.request.resumeFrom).toHaveLength(1);
    b!.finish();
    expect((await answer).receipt.workerIds).toEqual(["a", "b"]);
    expect(fleet.released).toEqual(["a WORKER_LOST", "b"]);
    expect(await metric("atelier_gateway_attempts_total")).toEqual({ STALLED: 1, ok: 1 });
  });

  it("is given the time to load the model", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { stallMs: 1_000, deadlineMs: 600_000 });
    void ask({}).catch(() => {});
    const [a] = await fleet.calls(1);
    fleet.change("a", { status: "loading" });
    await clock.advance(60_000);
    expect(a!.cancelled).toBe(false);
    fleet.change("a", { status: "resident" });
    await clock.advance(2_100);
    expect(a!.cancelled).toBe(true);
  });

  it("is left soon when its state stream has fallen silent as well", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { stallMs: 60_000 });
    void ask({}).catch(() => {});
    const [a] = await fleet.calls(1);
    fleet.change("a", { ready: false }); // left out for its failures, say: it speaks all the same
    await clock.advance(10_000);
    expect(a!.cancelled).toBe(false);
    fleet.change("a", { heard: false });
    await clock.advance(2_100);
    expect(a!.cancelled).toBe(true);
  });

  it("is not one that reports a step now and then", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { stallMs: 1_000 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.accepted(20);
    for (let step = 1; step <= 20; step++) {
      await clock.advance(900);
      a!.step(step);
    }
    a!.finish();
    expect((await answer).receipt.attempts).toBe(1);
  });
});

describe("hedging", () => {
  it("is off unless it is asked for", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { hedge: "off", stallMs: 600_000 });
    void ask({}).catch(() => {});
    await fleet.calls(1);
    await clock.advance(50_000);
    expect(fleet.all).toHaveLength(1);
  });

  it("asks another worker beside a straggler, from its checkpoint, and takes the first answer", async () => {
    const { fleet, ask, clock, metric, events } = rig(["a", "b"], { hedge: 2 });
    const answer = ask({});
    const [a] = await fleet.calls(1); // predicted to take 1 s
    a!.accepted(20);
    a!.step(8);
    a!.checkpoint(0, 8);
    await clock.advance(1_900);
    expect(fleet.all).toHaveLength(1);
    await clock.advance(200);
    const [, b] = await fleet.calls(2);
    expect([b!.address, b!.request.resumeFrom?.[0]?.stepIndex]).toEqual(["b", 8]);
    b!.accepted(20);
    b!.step(12);
    a!.step(9);
    b!.step(20);
    b!.finish();
    const { receipt, pictures } = await answer;
    expect(a!.cancelled).toBe(true);
    expect(pictures).toHaveLength(1);
    expect(receipt).toMatchObject({ workerId: "b", workerIds: ["a", "b"], attempts: 2 });
    expect(events()).toEqual(["accepted 20", "denoise 8", "denoise 12", "denoise 12", "denoise 20"]);
    expect(await metric("atelier_gateway_hedges_total")).toEqual({ won: 1 });
    expect(await metric("atelier_gateway_attempts_total")).toEqual({ SUPERSEDED: 1, ok: 1 });
    expect(fleet.released.toSorted()).toEqual(["a CANCELLED", "b"]);
  });

  it("takes the second back where the straggler is first after all", async () => {
    const { fleet, ask, clock, metric } = rig(["a", "b"], { hedge: 2 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    await clock.advance(2_100);
    const [, b] = await fleet.calls(2);
    a!.finish();
    expect((await answer).receipt.workerId).toBe("a");
    expect(b!.cancelled).toBe(true);
    expect(await metric("atelier_gateway_hedges_total")).toEqual({ lost: 1 });
  });

  it("waits for the other where one of the two fails", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { hedge: 2 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    await clock.advance(2_100);
    const [, b] = await fleet.calls(2);
    a!.fail("WORKER_LOST");
    b!.finish();
    expect((await answer).receipt.workerId).toBe("b");
    expect(fleet.all).toHaveLength(2);
  });

  it("goes on with a third where both fail, from whichever got further", async () => {
    const { fleet, ask, clock } = rig(["a", "b", "c"], { hedge: 2 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    await clock.advance(2_100);
    const [, b] = await fleet.calls(2);
    b!.checkpoint(0, 12);
    a!.checkpoint(0, 8);
    b!.fail("WORKER_LOST");
    a!.fail("WORKER_LOST");
    const [, , c] = await fleet.calls(3);
    expect([c!.address, c!.request.resumeFrom?.[0]?.stepIndex]).toEqual(["c", 12]);
    c!.finish();
    await answer;
  });

  it("does nothing where there is no other worker, or no budget", async () => {
    const alone = rig(["a"], { hedge: 2 });
    void alone.ask({}).catch(() => {});
    await alone.fleet.calls(1);
    await alone.clock.advance(2_100);
    expect([alone.fleet.all.length, alone.fleet.inFlight]).toEqual([1, 1]);
    expect(await alone.metric("atelier_gateway_hedges_total")).toEqual({ no_worker: 1 });

    const poor = rig(["a", "b"], { hedge: 2, retriesMax: 0 });
    void poor.ask({}).catch(() => {});
    await poor.fleet.calls(1);
    await poor.clock.advance(2_100);
    expect([poor.fleet.all.length, poor.fleet.inFlight]).toEqual([1, 1]);
    expect(await poor.metric("atelier_gateway_hedges_total")).toEqual({ no_budget: 1 });
  });

  it("learns what is out of the ordinary: after a hundred answers, what 99 of 100 are faster than", async () => {
    const { fleet, ask, clock } = rig(["a", "b"], { hedge: "learned" });
    for (let i = 1; i <= 100; i++) {
      const answer = ask({});
      const call = (await fleet.calls(i)).at(-1)!;
      await clock.advance(i === 1 ? 2_500 : 1_000); // predicted: 1 s
      call.finish();
      await answer;
    }
    void ask({}).catch(() => {});
    await fleet.calls(101);
    await clock.advance(2_400);
    expect(fleet.all).toHaveLength(101);
    await clock.advance(200);
    await fleet.calls(102);
  });
});

describe("checkpoints", () => {
  it("are asked for after each fifth of the steps, or as often as configured, or not at all", async () => {
    const every = async (steps: number, limits: Partial<Rig> = {}) => {
      const { fleet, ask } = rig(["a"], limits);
      void ask({ steps }).catch(() => {});
      return (await fleet.calls(1))[0]!.request.checkpointEverySteps;
    };
    expect([await every(25), await every(4), await every(150)]).toEqual([5, 1, 30]);
    expect([await every(25, { checkpointEvery: 2 }), await every(25, { checkpointEvery: 0 })]).toEqual([2, 0]);
    expect(await every(25, { predictedMs: 100 })).toBe(5); // somebody looks at them
    expect(await every(25, { wantedEvery: 3 })).toBe(3);
    expect(checkpointInterval(imageRequest({ steps: 25 }), 100)).toBe(0); // made again sooner than they pay
  });

  it("are kept within a limit of bytes: where a newer one does not fit the one before stays", async () => {
    const { fleet, ask, checkpoints } = rig(["a", "b"], { checkpointBytesMax: 100 });
    const answer = ask({});
    const [a] = await fleet.calls(1);
    a!.checkpoint(0, 4, 80);
    a!.checkpoint(0, 8, 90);
    expect(checkpoints.held).toBe(90);
    a!.checkpoint(0, 12, 120);
    expect(checkpoints.held).toBe(90);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    expect(b!.request.resumeFrom?.[0]?.stepIndex).toBe(8);
    b!.finish();
    await answer;
    expect(checkpoints.held).toBe(0);
  });

  it("are shown to whoever asked for them, by the request's own picture number", async () => {
    const { fleet, ask, passing } = rig(["a", "b"]);
    void ask({ numImages: 2 }).catch(() => {});
    const [a] = await fleet.calls(1);
    a!.image(0);
    a!.fail("WORKER_LOST");
    const [, b] = await fleet.calls(2);
    b!.checkpoint(0, 4);
    expect(passing).toMatchObject([{ imageIndex: 1, stepIndex: 4, channels: 4, height: 32, width: 32 }]);
  });
});

interface Rig extends DispatchLimits {
  readonly deadlineMs: number;
  readonly checkpointBytesMax: number;
  /** Of every request, on every worker. */
  readonly predictedMs: number;
  /** Steps between the checkpoints that whoever looks at them wants. */
  readonly wantedEvery: number;
}

/** A dispatcher over workers that do what a test says, in the order given; time stands still unless it is advanced. */
function rig(
  addresses: readonly string[],
  { deadlineMs = 120_000, checkpointBytesMax = 1e6, predictedMs = 1_000, wantedEvery, ...limits }: Partial<Rig> = {},
) {
  const manual = new ManualClock();
  const fleet = new ScriptedFleet(addresses, { predictedMs });
  const checkpoints = new ByteBudget(checkpointBytesMax);
  const registry = createRegistry("gateway");
  const dispatcher = new Dispatcher({
    placer: fleet,
    fleet,
    clock: manual,
    random: seededRandom(1),
    limits: {
      attemptsMax: 3,
      retryShare: 0.2,
      retriesMax: 100,
      retryWaitMs: 15_000,
      stallMs: 20_000,
      checkpointEvery: undefined,
      hedge: "off",
      ...limits,
    },
    checkpoints,
    metrics: createDispatchMetrics(registry, checkpoints),
    log: { info: (fields: object) => log.push(fields) },
  });
  const log: object[] = [];
  const events: GenerationEvent[] = [];
  const passing: PassingLatent[] = [];
  const gone = new AbortController();
  return {
    fleet,
    checkpoints,
    passing,
    log,
    abort: (reason: ServingError) => gone.abort(reason),
    clock: {
      /** In small steps, as promises run between timers. */
      advance: async (ms: number) => {
        for (let left = ms; left > 0; left -= 50) {
          manual.advance(Math.min(50, left));
          await settled();
        }
      },
    },
    ask: (changes: Partial<ImageRequest>) =>
      dispatcher.generate(imageRequest(changes), {
        order: { priority: "standard", tenant: "" },
        deadline: Deadline.after(manual, deadlineMs),
        signal: gone.signal,
        onEvent: (event) => events.push(event),
        onCheckpoint: (latent) => passing.push(latent),
        checkpointEvery: wantedEvery,
      }),
    events: () =>
      events.map((event) =>
        event.type === "accepted"
          ? `accepted ${event.stepsTotal}`
          : `${event.type === "progress" ? event.stage : event.type} ${event.stepsDone}`,
      ),
    /** A counter's values, by its label's value. */
    metric: async (name: string) => {
      const { values } = (await registry.getSingleMetric(name)?.get()) ?? { values: [] };
      const named = values.map(({ labels, value }) => [
        Object.entries(labels).find(([label]) => label !== "service")?.[1] ?? "",
        value,
      ]);
      return Object.fromEntries(named) as Record<string, number>;
    },
  };
}

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
