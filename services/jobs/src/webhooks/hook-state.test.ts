import { describe, expect, it } from "vitest";
import type { JobStatusName } from "../job.ts";
import { changesTo, NOTHING_TOLD } from "./hook-state.ts";

describe("what a receiver is told of a job", () => {
  it.each<{ seen: string; tells: string }>([
    { seen: "queued running done@9", tells: "- started done" },
    { seen: "queued done@9", tells: "- started+done" },
    { seen: "queued paused queued running", tells: "- paused resumed started" },
    { seen: "running paused paused running", tells: "started paused - resumed" },
    { seen: "running paused running paused", tells: "started paused resumed paused" },
    { seen: "running cancelled@9", tells: "started cancelled" },
    { seen: "paused cancelled@9", tells: "paused cancelled" },
    // No item runs for a while, as when a worker was lost.
    { seen: "running queued running", tells: "started - -" },
    // The last item has ended; its manifest is not there yet.
    { seen: "running done done@9", tells: "started - done" },
    // Its failed items are made again, all of it being failed ones.
    { seen: "running done@9 queued running done@12", tells: "started done resumed - done" },
  ])("$seen: $tells", ({ seen, tells }) => {
    let state = NOTHING_TOLD;
    const told = seen.split(" ").map((text) => {
      const [status, endedAt] = text.split("@");
      const endedAtMs = endedAt === undefined ? null : Number(endedAt);
      const next = changesTo({ status: status as JobStatusName, startedAtMs: 1, endedAtMs }, state);
      state = next.state;
      return next.changes.map(({ event }) => event.replace("job.", "")).join("+") || "-";
    });
    expect(told.join(" ")).toBe(tells);
  });

  it("says when it was, as far as that is known", () => {
    const { changes } = changesTo({ status: "done", startedAtMs: 5, endedAtMs: 9 }, NOTHING_TOLD);
    expect(changes).toEqual([
      { event: "job.started", atMs: 5 },
      { event: "job.done", atMs: 9 },
    ]);
  });
});
