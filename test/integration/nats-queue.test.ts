import { systemClock } from "@atelier/core";
import { openJobQueue } from "@atelier/job-queue";
import { afterAll, beforeAll } from "vitest";
import { describeJobQueue } from "../../packages/job-queue/src/job-queue.contract.ts";
import { type NatsProcess, startNats } from "../support/nats.ts";

let nats: NatsProcess;
let queues = 0;

beforeAll(async () => {
  nats = await startNats();
});

afterAll(() => nats.stop());

describeJobQueue("NATS", async () => {
  queues += 1;
  const prefix = `T${queues}`;
  const leaseMs = 800;
  return {
    open: () =>
      openJobQueue(
        { address: nats.url, prefix, leaseMs, timeoutMs: 5_000 },
        { clock: systemClock, onProblem: (text) => console.log(text) },
      ),
    leaseMs,
    pass: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
    close: async () => {},
  };
});
