import { ManualClock, ServingError } from "@atelier/core";
import { type WorkerState, WorkerStateSchema } from "@atelier/proto";
import { create } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import type { StreamHandlers } from "./worker-client.ts";
import { SILENCE_MAX_MS, WorkerWatch } from "./worker-watch.ts";

describe("WorkerWatch", () => {
  it("comes back after a stream broke, later each time", () => {
    const { clock, streams, trace } = watched();
    streams[0]!.end(new ServingError("WORKER_LOST", "reset"));
    clock.advance(99);
    expect(streams).toHaveLength(1);
    clock.advance(1);
    streams[1]!.end(new ServingError("WORKER_LOST", "refused"));
    clock.advance(199);
    expect(streams).toHaveLength(2);
    clock.advance(1);
    expect(streams).toHaveLength(3);
    expect(trace).toEqual(["lost: reset", "lost: refused"]);
  });

  it("starts its backoff over once it has heard a state", () => {
    const { clock, streams } = watched();
    streams[0]!.end(new ServingError("WORKER_LOST", "reset"));
    clock.advance(100);
    streams[1]!.message(state(1n));
    streams[1]!.end();
    clock.advance(100);
    expect(streams).toHaveLength(3);
  });

  it("drops a state that is no newer than the last one, within one stream", () => {
    const { clock, streams, trace } = watched();
    for (const sequence of [5n, 4n, 5n, 6n]) streams[0]!.message(state(sequence));
    streams[0]!.end();
    clock.advance(100);
    streams[1]!.message(state(1n));
    expect(trace).toEqual(["5", "6", "lost: the worker closed its state stream", "1"]);
  });

  it("gives up a stream that is silent for too long", () => {
    const { clock, streams, trace } = watched();
    streams[0]!.message(state(1n));
    clock.advance(SILENCE_MAX_MS - 1);
    streams[0]!.message(state(2n));
    clock.advance(SILENCE_MAX_MS - 1);
    expect(trace).toEqual(["1", "2"]);
    clock.advance(1);
    expect(trace.slice(2)).toEqual(["closed", "lost: no word from the worker for 10000 ms"]);
    clock.advance(100);
    expect(streams).toHaveLength(2);
  });

  it("ends a stream whose state it cannot use", () => {
    const { clock, streams, trace } = watched({ refuse: 2n });
    streams[0]!.message(state(1n));
    streams[0]!.message(state(2n));
    expect(trace).toEqual(["1", "closed", "lost: unusable"]);
    clock.advance(100);
    expect(streams).toHaveLength(2);
  });

  it("is quiet once stopped", () => {
    const { clock, streams, trace, watch } = watched();
    watch.stop();
    clock.advance(60_000);
    expect(streams).toHaveLength(1);
    expect(trace).toEqual(["closed"]);
  });
});

/** A watch whose draws are the longest, and what it did. */
function watched({ refuse }: { refuse?: bigint } = {}) {
  const clock = new ManualClock();
  const streams: StreamHandlers<WorkerState>[] = [];
  const trace: string[] = [];
  const watch = new WorkerWatch({
    clock,
    random: { next: () => 1 },
    open: (handlers) => {
      streams.push(handlers);
      return () => trace.push("closed");
    },
    onState: ({ sequence }) => {
      if (sequence === refuse) throw new ServingError("INTERNAL", "unusable");
      trace.push(String(sequence));
    },
    onLost: ({ detail }) => trace.push(`lost: ${detail}`),
  });
  watch.start();
  return { clock, streams, trace, watch };
}

function state(sequence: bigint): WorkerState {
  return create(WorkerStateSchema, { sequence });
}
