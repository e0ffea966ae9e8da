import {
  Deadline,
  type ErrorCode,
  invariant,
  ManualClock,
  type Random,
  ServingError,
  seededRandom,
} from "@atelier/core";
import { createRegistry } from "@atelier/telemetry";
import { describe, expect, it } from "vitest";
import type { Generation, GenerationEvent, ImageRequest } from "../image-request.ts";
import { type ScriptedCall, ScriptedFleet } from "../testing/scripted-fleet.ts";
import { imageRequest } from "../testing/views.ts";
import { ByteBudget } from "./byte-budget.ts";
import { createDispatchMetrics } from "./dispatch-metrics.ts";
import { Dispatcher } from "./dispatcher.ts";

/** Replays one history: SIM_SEED=17 npx vitest run services/gateway/src/dispatch/dispatcher.sim.test.ts */
const seeds = process.env["SIM_SEED"]
  ? [Number(process.env["SIM_SEED"])]
  : Array.from({ length: 60 }, (_, seed) => seed);

describe("requests over workers that die, hang, leave, refuse and come back", () => {
  it.each(seeds)("are each answered once, whole and in order, or fail with a reason (SIM_SEED=%i)", async (seed) => {
    const { requests, fleet, checkpoints } = await history(seed);
    for (const { asked, outcome, events } of requests) {
      if (outcome instanceof ServingError) expect(EXPECTED_FAILURES).toContain(outcome.code);
      else {
        expect(outcome.pictures.map(({ data }) => Buffer.from(data).toString())).toEqual(
          Array.from({ length: asked.numImages }, (_, i) => `picture of seed ${asked.seed + i}`),
        );
        expect(outcome.receipt).toMatchObject({ seed: asked.seed, numImages: asked.numImages });
        expect(outcome.receipt.workerIds).toHaveLength(outcome.receipt.attempts);
      }
      expect(events.filter(({ type }) => type === "accepted").length).toBeLessThanOrEqual(1);
      const steps = events.flatMap((event) => (event.type === "progress" ? [event.stepsDone] : []));
      expect(steps).toEqual(steps.toSorted((a, b) => a - b));
      expect(Math.max(0, ...steps)).toBeLessThanOrEqual(STEPS * asked.numImages);
    }
    // Nothing is left behind: no call, no place, no byte.
    expect(fleet.all.filter(({ over }) => !over)).toEqual([]);
    expect([fleet.inFlight, checkpoints.held]).toEqual([0, 0]);
  });

  it.each([
    "answered by one worker",
    "resumed",
    "answered by three workers",
    "finished after a worker left",
    "restarted from noise",
    "kept a picture of a lost worker",
    "was made in three slices",
    "stalled",
    "hedge won",
    "hedge lost",
    "waited for room",
    "failed WORKER_LOST",
    "failed NUMERIC_FAILURE",
    "failed DEADLINE_EXCEEDED",
  ])("really meet '%s' in these seeds", async (event) => {
    if (process.env["SIM_SEED"] !== undefined) return;
    const met = await all;
    expect(met).toContain(event);
  });

  it("go the same way twice for one seed", async () => {
    const [once, twice, other] = [await history(7), await history(7), await history(8)];
    expect(once.log).toEqual(twice.log);
    expect(once.log).not.toEqual(other.log);
  });
});

const STEPS = 10;
const EXPECTED_FAILURES: readonly ErrorCode[] = [
  "WORKER_LOST",
  "NUMERIC_FAILURE",
  "DEADLINE_EXCEEDED",
  "OVERLOADED",
  "OUT_OF_MEMORY",
  "NO_WORKER",
  "DRAINING",
];
const ADDRESSES = ["a", "b", "c", "d"];
const TICK_MS = 50;

interface Asked {
  readonly asked: ImageRequest;
  readonly events: GenerationEvent[];
  outcome: Generation | ServingError;
}

/** Twelve requests within six seconds; everything goes wrong for twenty, and then nothing more. */
async function history(seed: number) {
  const random = seededRandom(seed);
  const clock = new ManualClock();
  const fleet = new ScriptedFleet(ADDRESSES, { predictedMs: 1_000 });
  const checkpoints = new ByteBudget(400);
  const registry = createRegistry("gateway");
  const dispatcher = new Dispatcher({
    placer: fleet,
    fleet,
    clock,
    random,
    limits: {
      attemptsMax: 4,
      retryShare: 0.2,
      retriesMax: 40,
      retryWaitMs: 15_000,
      stallMs: 6_000,
      checkpointEvery: 1,
      hedge: 2,
    },
    checkpoints,
    metrics: createDispatchMetrics(registry, checkpoints),
    log: { info: () => {} },
  });
  const log: string[] = [];
  const requests: Asked[] = [];
  const workers = new Map<ScriptedCall, ActingWorker>();
  let unsettled = 0;
  const ask = () => {
    const id = requests.length;
    const asked = imageRequest({ seed: id * 100, steps: STEPS, numImages: 1 + Math.floor(random.next() * 4) });
    const request: Asked = { asked, events: [], outcome: new ServingError("INTERNAL", "not settled") };
    requests.push(request);
    unsettled += 1;
    const limits = {
      order: { priority: "standard", tenant: "" } as const,
      deadline: Deadline.after(clock, 2_000 + random.next() ** 2 * 60_000),
      signal: new AbortController().signal,
      onEvent: (event: GenerationEvent) => request.events.push(event),
    };
    const settle = (outcome: Generation | ServingError) => {
      request.outcome = outcome;
      unsettled -= 1;
      const how = outcome instanceof ServingError ? outcome.code : outcome.receipt.workerIds.join(" ");
      log.push(`${clock.nowMs()} request ${id}: ${how}`);
    };
    dispatcher.generate(asked, limits).then(settle, settle);
  };

  for (let tick = 0; tick < 1_600 && (tick < 120 || unsettled > 0); tick++) {
    const bad = tick < 400;
    if (tick < 120 && tick % 10 === 0) ask();
    for (const address of ADDRESSES) {
      const up = random.next();
      if (!bad || up < 0.03) fleet.change(address, { ready: true, heard: true });
      else if (up < 0.04) fleet.change(address, { ready: false });
    }
    for (const call of fleet.all) {
      if (call.over) continue;
      let worker = workers.get(call);
      if (worker === undefined) {
        worker = new ActingWorker(call, random);
        workers.set(call, worker);
      }
      const did = worker.act(bad, clock.nowMs());
      if (did !== undefined) log.push(`${clock.nowMs()} ${call.address} ${call.request.parameters?.seed}: ${did}`);
    }
    clock.advance(TICK_MS);
    await new Promise<void>((resolve) => setImmediate(resolve));
  }
  const { values: attempts } = await registry.getSingleMetric("atelier_gateway_attempts_total")!.get();
  const { values: hedges } = await registry.getSingleMetric("atelier_gateway_hedges_total")!.get();
  return { requests, fleet, checkpoints, log, attempts, hedges };
}

/** Makes a step of every picture in a turn, most of the time. */
class ActingWorker {
  readonly #call: ScriptedCall;
  readonly #random: Random;
  /** By picture; -1 once it is sent. */
  readonly #steps: number[];
  #accepted = false;
  #hangs = false;

  constructor(call: ScriptedCall, random: Random) {
    this.#call = call;
    this.#random = random;
    const { parameters, resumeFrom } = call.request;
    this.#steps = Array.from({ length: parameters!.numImages }, () => 0);
    for (const { parameters: begun, imageIndex, stepIndex } of resumeFrom) {
      // A state belongs to the picture of its seed; a real worker refuses others.
      const index = Number(begun!.seed + BigInt(imageIndex) - parameters!.seed);
      invariant(
        this.#steps[index] === 0,
        `the state of picture ${imageIndex} of ${begun!.seed} is asked for here, once`,
      );
      this.#steps[index] = stepIndex;
    }
  }

  act(bad: boolean, nowMs: number): string | undefined {
    const call = this.#call;
    if (nowMs >= call.deadlineAtMs) return this.#fail("DEADLINE_EXCEEDED");
    if (this.#hangs) return undefined;
    if (!this.#accepted) {
      if (bad && this.#happens(0.15)) return this.#fail("OVERLOADED");
      if (bad && call.request.resumeFrom.length > 0 && this.#happens(0.1)) {
        call.fail("INVALID_REQUEST", { field: "resume_from" });
        return "refuses the state";
      }
      this.#accepted = true;
      call.accepted(STEPS * this.#steps.length);
      return "accepts";
    }
    if (bad && this.#happens(0.02)) {
      this.#hangs = true;
      return "hangs";
    }
    if (bad && this.#happens(0.05)) return this.#fail("WORKER_LOST");
    if (bad && this.#happens(0.03)) return this.#fail("DRAINING");
    if (bad && this.#happens(0.003)) return this.#fail("NUMERIC_FAILURE");
    if (bad && this.#happens(0.005)) return this.#fail("OUT_OF_MEMORY");
    return this.#step(bad);
  }

  #step(bad: boolean): string | undefined {
    const call = this.#call;
    for (const [i, steps] of this.#steps.entries()) {
      if (steps < 0 || this.#happens(0.3)) continue;
      if (steps < STEPS) {
        this.#steps[i] = steps + 1;
        call.step(this.#steps.reduce((sum, each) => sum + (each < 0 ? STEPS : each), 0));
        if (steps + 1 < STEPS) call.checkpoint(i, steps + 1, 16 + Math.floor(this.#random.next() * 32));
      } else {
        call.image(i, `picture of seed ${call.request.parameters!.seed + BigInt(i)}`);
        this.#steps[i] = -1;
      }
    }
    if (this.#steps.some((steps) => steps >= 0)) return undefined;
    if (bad && this.#happens(0.1)) return this.#fail("WORKER_LOST");
    call.finish({ resumedAtSteps: call.request.resumeFrom.map(({ stepIndex }) => stepIndex) });
    return "finishes";
  }

  #fail(code: ErrorCode): string {
    this.#call.fail(code);
    return code;
  }

  #happens(probability: number): boolean {
    return this.#random.next() < probability;
  }
}

/** What the histories of all seeds met. */
const all = (async () => {
  const met = new Set<string>();
  if (process.env["SIM_SEED"] !== undefined) return met;
  for (const seed of seeds) {
    const { requests, fleet, log, attempts, hedges } = await history(seed);
    for (const { labels } of attempts) if (labels["outcome"] === "STALLED") met.add("stalled");
    for (const { labels } of hedges) met.add(`hedge ${labels["outcome"]}`);
    for (const { asked, outcome } of requests) {
      if (outcome instanceof ServingError) {
        met.add(`failed ${outcome.code}`);
        continue;
      }
      const { attempts, workerIds, resumedAtSteps } = outcome.receipt;
      if (attempts === 1) met.add("answered by one worker");
      if (resumedAtSteps.length > 0) met.add("resumed");
      if (new Set(workerIds).size >= 3) met.add("answered by three workers");
      const calls = fleet.all.filter(
        ({ request }) => Math.floor(Number(request.parameters!.seed) / 100) === asked.seed / 100,
      );
      if (calls.some(({ request }) => request.parameters!.numImages < asked.numImages))
        met.add("kept a picture of a lost worker");
      if (new Set(calls.map(({ request }) => request.parameters!.seed)).size >= 3) met.add("was made in three slices");
      const said = (what: string) => log.some((line) => line.endsWith(` ${asked.seed}: ${what}`));
      if (said("DRAINING")) met.add("finished after a worker left");
      if (said("refuses the state")) met.add("restarted from noise");
      if (said("OVERLOADED") && said("accepts")) met.add("waited for room");
    }
  }
  return met;
})();
