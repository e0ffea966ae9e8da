/**
 * A stand-in for a worker: speaks its part of the contract with its parent and writes what happens to FAKE_LOG.
 * FAKE_WORKER says how it misbehaves: "fails" (says why and ends), "dies" (without a word, before it is ready),
 * "slow" (is never ready), "stays" (ignores SIGTERM).
 */
import { appendFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";

const {
  ATELIER_WORKER_ID: id,
  ATELIER_WORKER_LISTEN: listen,
  ATELIER_MODELS: models,
  FAKE_WORKER: fault,
} = process.env;
const [host, port] = listen!.split(":");
const note = (line: string) => appendFileSync(process.env["FAKE_LOG"]!, `${id} ${line}\n`);

process.on("SIGTERM", () => {
  note("SIGTERM");
  if (fault !== "stays") process.exit(0);
});
process.on("disconnect", () => {
  note("lost its parent");
  process.exit(0);
});

const server = createServer().listen(Number(port), host, () => {
  const address = `${host}:${(server.address() as AddressInfo).port}`;
  note(`started on ${models} by ${process.env["ATELIER_DEVICE"]} listens at ${address} pid ${process.pid}`);
  note(`is drained for ${process.env["ATELIER_DRAIN_MS"]} ms`);
  if (process.env["ATELIER_QUEUE"])
    note(`pulls from ${process.env["ATELIER_QUEUE"]} into ${process.env["ATELIER_OBJECTS"]}`);
  process.send!({ type: "listening", address });
  if (fault === "fails") {
    process.send!({ type: "failed", message: "no model at /nowhere" }, () => process.exit(1));
  } else if (fault === "dies") {
    process.exit(3);
  } else if (fault !== "slow") {
    process.send!({ type: "ready" });
  }
});
