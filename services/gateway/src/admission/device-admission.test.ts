import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { ServiceOrder } from "../generations/ports.ts";
import type { Prediction } from "../placement/placer.ts";
import { imageRequest } from "../testing/views.ts";
import { BrownOut } from "./brown-out.ts";
import { DeviceAdmission } from "./device-admission.ts";

const ORDER: ServiceOrder = { priority: "interactive", tenant: "t" };

describe("DeviceAdmission", () => {
  it("lets in what waits no longer than is allowed and is finished before its deadline", () => {
    const { enter, refusals } = admission({ waitMs: 10_000, finishMs: 12_000 });
    expect(() => enter({ deadlineMs: 12_000 })).not.toThrow();
    expect(refusals).toEqual([]);
  });

  it("refuses what has too much work before it, with the time until there is room", () => {
    const { enter, refusals } = admission({ waitMs: 10_001, finishMs: 12_000 });
    expect(refusalOf(() => enter({ deadlineMs: 60_000 }))).toMatchObject({ code: "OVERLOADED", retryAfterMs: 1 });
    expect(refusals).toEqual(["queue"]);
  });

  it("refuses what would be finished after its deadline, with the time until it would not", () => {
    const { enter, refusals } = admission({ waitMs: 9_000, finishMs: 11_000 });
    const refusal = refusalOf(() => enter({ deadlineMs: 7_500 }));
    expect(refusal).toMatchObject({ code: "OVERLOADED", retryAfterMs: 3_500 });
    expect(refusal.detail).toBe("the request would be finished in about 11.0 s, and its deadline is in 7.5 s");
    expect(refusals).toEqual(["deadline"]);
  });

  it("says so where not even an idle system would make it in time: to come back later would not help", () => {
    const { enter } = admission({ waitMs: 1_000, finishMs: 5_000 });
    expect(refusalOf(() => enter({ deadlineMs: 2_000 }))).toMatchObject({
      code: "DEADLINE_EXCEEDED",
      field: "deadline_ms",
      retryAfterMs: undefined,
    });
  });

  it("doubts a prediction that is over the deadline by less than half, where hardly anything lies before the request", () => {
    const { enter } = admission({ waitMs: 1_000, finishMs: 4_000 });
    expect(() => enter({ deadlineMs: 2_000 })).not.toThrow();
    expect(() => enter({ deadlineMs: 1_999 })).toThrow();
  });

  it("turns nobody away by a guess", () => {
    const { enter } = admission({ waitMs: 0, finishMs: 60_000, measured: false });
    expect(() => enter({ deadlineMs: 1_000 })).not.toThrow();
  });

  it("lets a request in where no worker is there: whoever dispatches it waits for one", () => {
    const { enter, adjust } = admission(new ServingError("NO_WORKER", "none"), { brownOutAfterMs: 1 });
    expect(() => enter({ deadlineMs: 1_000 })).not.toThrow();
    expect(adjust({ steps: 30 }).steps).toBe(30);
  });

  it("predicts for the class of the request: whoever is more urgent waits for less", () => {
    const asked: ServiceOrder[] = [];
    const { enter } = admission({ waitMs: 0, finishMs: 1 }, { onPredict: (order) => asked.push(order) });
    enter({ deadlineMs: 1_000 });
    expect(asked).toEqual([ORDER]);
  });
});

describe("BrownOut", () => {
  it("takes nothing away below its threshold", () => {
    const { adjust } = admission({ waitMs: 999 }, { brownOutAfterMs: 1_000 });
    expect(adjust({ steps: 30 })).toMatchObject({ steps: 30 });
    expect(adjust({ steps: 30 })).not.toHaveProperty("reduced");
  });

  it("asks for three quarters of the steps first, then half and a fast sampler, and notes what was asked", () => {
    expect(
      admission({ waitMs: 1_000 }, { brownOutAfterMs: 1_000 }).adjust({ steps: 30, sampler: "ddim" }),
    ).toMatchObject({
      steps: 23,
      sampler: "ddim",
      reduced: { steps: 30 },
    });
    expect(
      admission({ waitMs: 2_000 }, { brownOutAfterMs: 1_000 }).adjust({ steps: 30, sampler: "ddim" }),
    ).toMatchObject({
      steps: 15,
      sampler: "dpmpp_2m",
      reduced: { steps: 30, sampler: "ddim" },
    });
  });

  it("keeps the sampler of those that are fast already, and never goes below eight steps", () => {
    const { adjust } = admission({ waitMs: 5_000 }, { brownOutAfterMs: 1_000 });
    expect(adjust({ steps: 12, sampler: "unipc" })).toMatchObject({
      steps: 8,
      sampler: "unipc",
      reduced: { steps: 12 },
    });
    expect(adjust({ steps: 6, sampler: "lcm" })).not.toHaveProperty("reduced");
  });

  it("leaves alone what names its seed or starts from a picture: that asks for one certain result", () => {
    const { adjust } = admission({ waitMs: 5_000 }, { brownOutAfterMs: 1_000 });
    expect(adjust({ steps: 30, seed: 7 })).not.toHaveProperty("reduced");
    const initPicture = { bytes: new Uint8Array(1), strength: 0.5 };
    expect(adjust({ steps: 30, initPicture })).not.toHaveProperty("reduced");
  });

  it("takes more away at once, and gives back by one level in five seconds", () => {
    const clock = new ManualClock();
    const brownOut = new BrownOut({ clock, afterMs: 1_000 });
    const asked = { ...imageRequest({ steps: 40 }), seed: undefined };
    const stepsAt = (waitMs: number) => brownOut.apply(asked, waitMs).steps;
    expect([stepsAt(0), stepsAt(1_500), stepsAt(2_500)]).toEqual([40, 30, 20]);
    clock.advance(4_999);
    expect(stepsAt(0)).toBe(20);
    clock.advance(1);
    expect(stepsAt(0)).toBe(30);
    expect(stepsAt(0)).toBe(30);
    clock.advance(5_000);
    expect(stepsAt(0)).toBe(40);
  });
});

function admission(
  answer: Partial<Prediction> | ServingError,
  { brownOutAfterMs, onPredict }: { brownOutAfterMs?: number; onPredict?: (order: ServiceOrder) => void } = {},
) {
  const clock = new ManualClock();
  const refusals: string[] = [];
  const subject = new DeviceAdmission({
    placer: {
      predict: (_image, order) => {
        onPredict?.(order as ServiceOrder);
        if (answer instanceof ServingError) throw answer;
        return { waitMs: 0, workMs: 0, finishMs: 0, measured: true, ...answer };
      },
    },
    waitMaxMs: 10_000,
    brownOut: brownOutAfterMs === undefined ? undefined : new BrownOut({ clock, afterMs: brownOutAfterMs }),
    metrics: {
      refusals: { inc: (labels: unknown) => void refusals.push((labels as { reason: string }).reason) },
      predictedWaitSeconds: { observe: () => {} },
    },
  });
  return {
    refusals,
    enter: ({ deadlineMs }: { deadlineMs: number }) =>
      subject.enter(imageRequest(), { order: ORDER, deadline: Deadline.after(clock, deadlineMs) }),
    adjust: (changes: Parameters<typeof imageRequest>[0]) =>
      subject.adjust({ ...imageRequest(changes), seed: changes?.seed }, ORDER),
  };
}

function refusalOf(run: () => unknown): ServingError {
  try {
    run();
  } catch (error) {
    return error as ServingError;
  }
  throw new Error("it was let in");
}
