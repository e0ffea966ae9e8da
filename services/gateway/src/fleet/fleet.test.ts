import { ManualClock, ServingError } from "@atelier/core";
import { Sampler, type WorkerState, WorkerStateSchema } from "@atelier/proto";
import { createLogger } from "@atelier/telemetry";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, it } from "vitest";
import { fakeModel } from "../testing/fake-worker.ts";
import { Fleet } from "./fleet.ts";
import type { StreamHandlers, WorkerClient } from "./worker-client.ts";

describe("Fleet", () => {
  it("takes a worker for not ready until it has said otherwise, and again once it is lost", () => {
    const { fleet, streams } = startFleet(["a:1"]);
    const seen = () => fleet.views().map(({ id, ready, notReadyReason }) => [id, ready, notReadyReason]);
    expect(seen()).toEqual([["a:1", false, "not reached yet"]]);
    streams.get("a:1")?.message(state({ ready: false }));
    expect(seen()).toEqual([["w1", false, "warming up"]]);
    streams.get("a:1")?.message(state({ sequence: 2n }));
    expect(seen()).toEqual([["w1", true, undefined]]);
    streams.get("a:1")?.message(state({ sequence: 3n, draining: true }));
    expect(seen()).toEqual([["w1", false, "draining"]]);
    streams.get("a:1")?.end(new ServingError("WORKER_LOST", "reset"));
    expect(seen()).toEqual([["a:1", false, "reset"]]);
  });

  it("remembers the models of a worker that it lost, and of one that has not loaded them again yet", () => {
    const { fleet, streams } = startFleet(["a:1"]);
    const models = () => [...(fleet.views()[0]?.models.keys() ?? [])];
    streams.get("a:1")?.message(state());
    streams.get("a:1")?.message(state({ sequence: 2n, ready: false, models: [] }));
    expect(models()).toEqual(["atelier-tiny"]);
    streams.get("a:1")?.message(state({ sequence: 3n, models: [] }));
    expect(models()).toEqual([]);
    streams.get("a:1")?.message(state({ sequence: 4n }));
    streams.get("a:1")?.end();
    expect(models()).toEqual(["atelier-tiny"]);
  });

  it("counts what was placed on a worker until it is released, once", () => {
    const { fleet } = startFleet(["a:1", "b:1"]);
    const counts = () => fleet.views().map(({ inFlight }) => inFlight);
    const first = fleet.place("b:1", WORK);
    fleet.place("b:1", WORK);
    expect(counts()).toEqual([0, 2]);
    first.release();
    first.release();
    expect(counts()).toEqual([0, 1]);
  });

  it("counts placed work as the worker's until the worker does, and less what was placed of what it would take", () => {
    const { fleet, streams } = startFleet(["a:1"]);
    const told = (changes: MessageInitShape<typeof WorkerStateSchema>) => streams.get("a:1")?.message(state(changes));
    told({ requestsFree: 3, backlogStandardMs: 50, jobsLeftStandardMs: [50] });
    const slot = fleet.place("a:1", WORK);
    const seen = () => fleet.views().map(({ jobsLeftMs, requestsFree }) => [jobsLeftMs.standard, requestsFree])[0];
    expect(seen()).toEqual([[50, 100], 2]);
    slot.accepted({ sequence: 2n });
    told({ sequence: 3n, requestsFree: 2, backlogStandardMs: 140, jobsLeftStandardMs: [98, 42] });
    expect(seen()).toEqual([[42, 98], 2]);
  });

  it("takes a worker that has a backlog and names no jobs for one that serves in the order of arrival", () => {
    const { fleet, streams } = startFleet(["a:1"]);
    const first = () => fleet.views()[0]?.shortestFirst;
    streams.get("a:1")?.message(state());
    expect(first()).toBe(true);
    streams.get("a:1")?.message(state({ sequence: 2n, backlogBulkMs: 10 }));
    expect(first()).toBe(false);
    streams.get("a:1")?.message(state({ sequence: 3n, backlogBulkMs: 10, jobsLeftBulkMs: [10] }));
    expect(first()).toBe(true);
  });

  it("leaves a worker out that fails again and again, says so, and takes it in again", () => {
    const { fleet, streams, clock } = startFleet(["a:1", "b:1"]);
    const heard: string[] = [];
    fleet.observe({ ejected: (address) => heard.push(address), removed: () => {} });
    for (const stream of streams.values()) stream.message(state());
    let changes = 0;
    fleet.onChange(() => (changes += 1));
    const failed = (address: string) => fleet.place(address, WORK).release(new ServingError("INTERNAL", "again"));
    for (let i = 0; i < 5; i++) failed("a:1");
    const reasons = () => fleet.views().map(({ ready, notReadyReason }) => [ready, notReadyReason]);
    expect(reasons()).toEqual([
      [false, "left out for another 10 s after failures in a row"],
      [true, undefined],
    ]);
    expect([heard, changes]).toEqual([["a:1"], 1]);
    for (let i = 0; i < 9; i++) failed("b:1"); // one of two is out already
    clock.advance(9_000);
    for (const stream of streams.values()) stream.message(state({ sequence: 2n })); // both are heard of all the while
    clock.advance(1_000);
    expect(reasons()).toEqual([
      [true, undefined],
      [true, undefined],
    ]);
  });

  it("takes a placement that was given back unused for no sign of a worker's health, one that was accepted for one", () => {
    const { fleet, streams } = startFleet(["a:1", "b:1"]);
    for (const stream of streams.values()) stream.message(state());
    const fail = (times: number) => {
      for (let i = 0; i < times; i++) fleet.place("a:1", WORK).release(new ServingError("INTERNAL", "again"));
    };
    fail(4);
    const good = fleet.place("a:1", WORK);
    good.accepted({ sequence: 2n });
    good.release();
    fail(4);
    fleet.place("a:1", WORK).release();
    expect(fleet.views()[0]?.ready).toBe(true);
    fail(1);
    expect(fleet.views()[0]?.ready).toBe(false);
  });

  it("lets a worker that has left its directory finish what it is making", () => {
    const { fleet, tell, closed } = startFleet(["a:1", "b:1"]);
    const [first, second] = [fleet.place("a:1", WORK), fleet.place("a:1", WORK)];
    tell(["b:1"]);
    expect(fleet.views().map(({ address }) => address)).toEqual(["b:1"]);
    expect(closed).toEqual(["a:1 stream"]);
    first.release();
    second.release(new ServingError("DRAINING", "handed back"));
    expect(closed).toEqual(["a:1 stream", "a:1 channel"]);
  });

  it.each<[string, MessageInitShape<typeof WorkerStateSchema>]>([
    ["without limits", { models: [{ ...fakeModel("m"), limits: undefined } as never] }],
    ["without defaults", { models: [{ ...fakeModel("m"), defaults: undefined } as never] }],
    ["with a sampler unheard of", { models: [{ ...fakeModel("m"), defaults: { sampler: Sampler.UNSPECIFIED } }] }],
  ])("refuses the report of a model %s", (_what, report) => {
    const { fleet, streams } = startFleet(["a:1"]);
    streams.get("a:1")?.message(state(report));
    expect(fleet.views()[0]).toMatchObject({
      ready: false,
      notReadyReason: 'model "m" came without limits or defaults',
    });
  });

  it("follows its directory: takes up new workers, closes those that are gone, leaves the others alone", () => {
    const { fleet, tell, opened, closed } = startFleet(["a:1", "b:1"]);
    tell(["b:1", "c:1"]);
    expect(fleet.views().map(({ address }) => address)).toEqual(["b:1", "c:1"]);
    expect(opened).toEqual(["a:1", "b:1", "c:1"]);
    expect(closed).toEqual(["a:1 stream", "a:1 channel"]);
    fleet.close();
    expect(closed.slice(2)).toEqual(["b:1 stream", "b:1 channel", "c:1 stream", "c:1 channel"]);
  });
});

const WORK = { priority: "standard", jobs: 1, msEach: 100 } as const;

/** A fleet over streams that the test writes to. */
function startFleet(addresses: readonly string[]) {
  const streams = new Map<string, StreamHandlers<WorkerState>>();
  const opened: string[] = [];
  const closed: string[] = [];
  let tell: (addresses: readonly string[]) => void = () => {};
  const clock = new ManualClock();
  const fleet = new Fleet({
    directory: {
      watch: (listener) => {
        tell = listener;
        listener(addresses);
        return () => {};
      },
    },
    connect: (address) => {
      const client: Pick<WorkerClient, "watch" | "close"> = {
        watch: (handlers) => {
          opened.push(address);
          streams.set(address, handlers);
          return () => closed.push(`${address} stream`);
        },
        close: () => void closed.push(`${address} channel`),
      };
      return client as WorkerClient;
    },
    clock,
    random: { next: () => 0 },
    log: createLogger("gateway", "silent"),
  });
  fleet.start();
  return { fleet, streams, opened, closed, clock, tell: (list: readonly string[]) => tell(list) };
}

function state(changes: MessageInitShape<typeof WorkerStateSchema> = {}): WorkerState {
  return create(WorkerStateSchema, { workerId: "w1", sequence: 1n, ready: true, models: [fakeModel()], ...changes });
}
