/** A stand-in for Redis: speaks its part of the contract with its parent and writes what happens to FAKE_LOG. */
import { appendFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";

const { ATELIER_REDIS_LISTEN: listen, FAKE_REDIS: fault } = process.env;
const [host, port] = listen!.split(":");
const note = (line: string) => appendFileSync(process.env["FAKE_LOG"]!, `redis ${line}\n`);

process.on("SIGTERM", () => {
  note("SIGTERM");
  process.exit(0);
});
process.on("disconnect", () => process.exit(0));

if (fault === "fails") {
  process.send!({ type: "failed", message: "redis-server is not to be had" }, () => process.exit(1));
} else {
  const server = createServer().listen(Number(port), host, () => {
    const address = `${host}:${(server.address() as AddressInfo).port}`;
    note(`started listens at ${address} pid ${process.pid}`);
    process.send!({ type: "listening", address });
    process.send!({ type: "ready" });
  });
}
