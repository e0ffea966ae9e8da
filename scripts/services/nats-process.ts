/** NATS with JetStream as a child process of ours. What it holds stays in ATELIER_NATS_FOLDER for the next one. */
import { readListen, runAsChild } from "./child-daemon.ts";
import { startNatsServer } from "./daemons.ts";

const { ATELIER_NATS_LISTEN: listen = "127.0.0.1:0", ATELIER_NATS_FOLDER: store } = process.env;
await runAsChild("nats-server", () => startNatsServer({ ...readListen(listen), ...(store && { store }) }));
