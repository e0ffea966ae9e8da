import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ManualClock } from "@atelier/core";
import { describeJobQueue } from "../job-queue.contract.ts";
import { openSqliteQueue } from "./open-sqlite-queue.ts";

describeJobQueue("a file", async () => {
  const folder = await mkdtemp(join(tmpdir(), "atelier-queue-"));
  const clock = new ManualClock(1_000_000);
  const leaseMs = 30_000;
  return {
    open: () => openSqliteQueue({ path: join(folder, "queue.db"), leaseMs, timeoutMs: 5_000 }, { clock }),
    leaseMs,
    pass: async (ms) => clock.advance(ms),
    close: () => rm(folder, { recursive: true }),
  };
});
