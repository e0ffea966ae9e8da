import { Deadline, ManualClock, ServingError } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { MakeLimits } from "../generations/ports.ts";
import type { GenerationEvent } from "../image-request.ts";
import { Flight } from "./flight.ts";

describe("Flight", () => {
  it("gives all who wait one result, and the first of them the bill", async () => {
    const { flight, join, attempts } = takeOff();
    const [one, two, three] = [join(), join(), join()];
    attempts[0]!.resolve("picture");
    expect(await Promise.all([one.landed, two.landed, three.landed])).toEqual([
      { result: "picture", first: true },
      { result: "picture", first: false },
      { result: "picture", first: false },
    ]);
    expect([attempts.length, flight.open, ended()]).toEqual([1, false, 1]);
  });

  it("goes on when the first leaves, whose place the next one takes; and ends when the last leaves", async () => {
    const { flight, join, attempts } = takeOff();
    const [one, two] = [join(), join()];
    one.leave("gone");
    await expect(one.landed).rejects.toThrow("gone");
    expect(attempts[0]!.limits.signal.aborted).toBe(false);
    attempts[0]!.resolve("picture");
    expect(await two.landed).toEqual({ result: "picture", first: true });

    const other = takeOff();
    const [three, four] = [other.join(), other.join()];
    three.leave("gone");
    four.leave("gone, too");
    await expect(four.landed).rejects.toThrow("gone, too");
    await expect(three.landed).rejects.toThrow("gone");
    expect(other.attempts[0]!.limits.signal.reason).toMatchObject({ detail: "gone, too" });
    expect([flight.open, other.flight.open]).toEqual([false, false]);
  });

  it("does not take off for one that is gone already", async () => {
    const { join, attempts } = takeOff();
    await expect(join({ gone: true }).landed).rejects.toThrow("gone before");
    expect(attempts).toHaveLength(0);
  });

  it("shares a failure that is nobody's own", async () => {
    const { join, attempts, flight } = takeOff();
    const [one, two] = [join(), join({ ms: 5_000 })];
    attempts[0]!.reject(new ServingError("NUMERIC_FAILURE", "NaN"));
    await expect(one.landed).rejects.toThrow("NaN");
    await expect(two.landed).rejects.toThrow("NaN");
    expect([attempts.length, flight.open]).toEqual([1, false]);
  });

  it.each(["DEADLINE_EXCEEDED", "OVERLOADED"] as const)(
    "starts again, with the latest deadline, for those who have more time than what failed with %s",
    async (code) => {
      const { join, attempts } = takeOff();
      const [one, two, three] = [join({ ms: 100 }), join({ ms: 900 }), join({ ms: 500 })];
      expect(attempts[0]!.limits.deadline.atMs).toBe(100);
      attempts[0]!.reject(new ServingError(code, "no time"));
      await expect(one.landed).rejects.toMatchObject({ code });
      await turn();
      expect(attempts.map(({ limits }) => limits.deadline.atMs)).toEqual([100, 900]);
      attempts[1]!.resolve("picture");
      expect(await two.landed).toEqual({ result: "picture", first: true });
      expect(await three.landed).toEqual({ result: "picture", first: false });
    },
  );

  it("ends the wait of one whose time is up first, and only that", async () => {
    const { join, attempts, clock } = takeOff();
    const [one, two] = [join({ ms: 1_000 }), join({ ms: 100 })];
    clock.advance(100);
    await expect(two.landed).rejects.toMatchObject({ code: "DEADLINE_EXCEEDED" });
    attempts[0]!.resolve("picture");
    expect(await one.landed).toEqual({ result: "picture", first: true });
  });

  it("tells each what happens, one that joins late what it has missed, and previews only to who asked for them", async () => {
    const { join, attempts } = takeOff();
    const one = join({ previews: true });
    const tell = attempts[0]!.limits.onEvent!;
    tell(ACCEPTED);
    tell(progress(1));
    tell(progress(2));
    const two = join();
    tell(PREVIEW);
    tell(progress(3));
    attempts[0]!.resolve("picture");
    await one.landed;
    expect(one.heard).toEqual([ACCEPTED, progress(1), progress(2), PREVIEW, progress(3)]);
    expect(two.heard).toEqual([ACCEPTED, progress(2), progress(3)]);
  });
});

let endings = 0;
const ended = () => endings;

function takeOff() {
  const clock = new ManualClock(0);
  const attempts: (PromiseWithResolvers<string> & { limits: MakeLimits })[] = [];
  endings = 0;
  const flight = new Flight<string>({
    clock,
    order: { priority: "interactive", tenant: "t" },
    fly: (limits) => {
      const attempt = { ...Promise.withResolvers<string>(), limits };
      attempts.push(attempt);
      return attempt.promise;
    },
    onEnd: () => {
      endings += 1;
    },
  });
  const join = ({ ms = 1_000, previews = false, gone = false } = {}) => {
    const controller = new AbortController();
    if (gone) controller.abort(new ServingError("CANCELLED", "gone before"));
    const heard: GenerationEvent[] = [];
    const landed = flight.join({
      deadline: Deadline.after(clock, ms),
      signal: controller.signal,
      onEvent: (event) => heard.push(event),
      previews,
    });
    return { landed, heard, leave: (why: string) => controller.abort(new ServingError("CANCELLED", why)) };
  };
  return { flight, join, attempts, clock };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));
const ACCEPTED: GenerationEvent = { type: "accepted", seed: 1, model: "m", stepsTotal: 4 };
const progress = (stepsDone: number): GenerationEvent => ({
  type: "progress",
  stage: "denoise",
  stepsDone,
  stepsTotal: 4,
  imageIndex: 0,
});
const PREVIEW: GenerationEvent = {
  type: "preview",
  imageIndex: 0,
  stepsDone: 2,
  stepsTotal: 4,
  data: new Uint8Array(1),
};
