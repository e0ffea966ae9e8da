import { ManualClock } from "@atelier/core";
import { describe, expect, it } from "vitest";
import type { JobView } from "../ports.ts";
import { ProgressCalls } from "./progress-calls.ts";

describe("ProgressCalls", () => {
  it("calls twice a second at most, with the newest state, through 10,000 changes in 10 s", async () => {
    const { clock, calls, progress, dropped } = watched();
    for (let i = 0; i < 10_000; i++) {
      progress.offer(job("a", i));
      clock.advance(1);
      await settled();
    }
    clock.advance(500);
    await settled();
    expect(calls.length).toBeLessThanOrEqual(21);
    expect(calls.length).toBeGreaterThanOrEqual(20);
    for (const [i, { atMs }] of calls.entries())
      if (i > 0) expect(atMs - calls[i - 1]!.atMs).toBeGreaterThanOrEqual(500);
    expect(calls.at(-1)!.sequence).toBe(9_999);
    expect(calls.length + dropped()).toBe(10_000);
  });

  it("has one call at a time for a job, however slow its receiver is", async () => {
    const answer = Promise.withResolvers<void>();
    const { clock, calls, progress } = watched(() => answer.promise);
    for (let i = 0; i < 10; i++) {
      progress.offer(job("a", i));
      clock.advance(1_000);
    }
    expect(calls.map(({ sequence }) => sequence)).toEqual([0]);
    answer.resolve();
    await settled();
    clock.advance(0);
    expect(calls.map(({ sequence }) => sequence)).toEqual([0, 9]);
  });

  it("lets a slow receiver hold up four calls to its host, and none to another", () => {
    const { clock, calls, progress, dropped } = watched(() => new Promise(() => {}));
    for (const id of ["a", "b", "c", "d", "e", "f"]) progress.offer(job(id, 1));
    progress.offer(job("g", 1, "http://other.example/"));
    clock.advance(0);
    expect(calls.map(({ id }) => id)).toEqual(["a", "b", "c", "d", "g"]);
    expect(dropped()).toBe(2);
  });

  it("says nothing of a job that has ended meanwhile", () => {
    const { clock, calls, progress } = watched();
    progress.offer(job("a", 1));
    progress.forget("a");
    clock.advance(1_000);
    expect(calls).toEqual([]);
  });
});

function watched(call: () => Promise<void> = async () => {}) {
  const clock = new ManualClock(1_000_000);
  const calls: { id: string; sequence: number; atMs: number }[] = [];
  let dropped = 0;
  const progress = new ProgressCalls({
    clock,
    call: (view) => {
      calls.push({ id: view.record.id, sequence: view.sequence, atMs: clock.nowMs() });
      return call();
    },
    onDropped: () => {
      dropped++;
    },
  });
  return { clock, calls, progress, dropped: () => dropped };
}

function job(id: string, sequence: number, url = "http://shop.example/"): JobView {
  return { record: { id, webhook: { url, events: [] } }, sequence } as unknown as JobView;
}

const settled = () => new Promise<void>((resolve) => setImmediate(resolve));
