/** A stand-in for NATS: speaks its part of the contract with its parent and writes what happens to FAKE_LOG. */
import { appendFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";

const { ATELIER_NATS_LISTEN: listen, ATELIER_NATS_FOLDER: store, FAKE_NATS: fault } = process.env;
const [host, port] = listen!.split(":");
const note = (line: string) => appendFileSync(process.env["FAKE_LOG"]!, `nats ${line}\n`);

process.on("SIGTERM", () => {
  note("SIGTERM");
  process.exit(0);
});
process.on("disconnect", () => process.exit(0));

if (fault === "fails") {
  process.send!({ type: "failed", message: "nats-server is not to be had" }, () => process.exit(1));
} else {
  const server = createServer().listen(Number(port), host, () => {
    const address = `${host}:${(server.address() as AddressInfo).port}`;
    note(`started in ${store} listens at ${address} pid ${process.pid}`);
    process.send!({ type: "listening", address });
    process.send!({ type: "ready" });
  });
}
