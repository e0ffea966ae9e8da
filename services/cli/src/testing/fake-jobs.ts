/** A stand-in for the jobs service: speaks its part of the contract and writes what it was told to FAKE_LOG. */
import { appendFileSync } from "node:fs";
import { createServer } from "node:net";

const { ATELIER_JOBS_LISTEN: listen, ATELIER_QUEUE: queue, ATELIER_OBJECTS: objects, FAKE_JOBS: fault } = process.env;
const { ATELIER_GATEWAY: gateways, ATELIER_INTERNAL_TOKEN: token } = process.env;
const [host, port] = listen!.split(":");
const note = (line: string) => appendFileSync(process.env["FAKE_LOG"]!, `jobs ${line}\n`);

process.on("SIGTERM", () => {
  note("SIGTERM");
  process.exit(0);
});
process.on("disconnect", () => process.exit(0));

createServer().listen(Number(port), host, () => {
  note(`started on ${queue} and ${objects} for ${gateways} with ${token} listens at ${listen} pid ${process.pid}`);
  process.send!({ type: "listening", address: `http://${listen}` });
  if (fault === "fails") process.send!({ type: "failed", message: "no queue at /nowhere" }, () => process.exit(1));
  else process.send!({ type: "ready" });
});
