/** The `atelier` command over stand-ins for the services, for tests that need its real process. */
import { join } from "node:path";
import { run } from "../program.ts";

process.exit(
  await run(process.argv.slice(2), {
    version: "1.2.3",
    root: process.env["FAKE_ROOT"] ?? "/repository",
    entries: {
      worker: join(import.meta.dirname, "fake-worker.ts"),
      gateway: join(import.meta.dirname, "fake-gateway.ts"),
      redis: join(import.meta.dirname, "fake-redis.ts"),
      nats: join(import.meta.dirname, "fake-nats.ts"),
      jobs: join(import.meta.dirname, "fake-jobs.ts"),
    },
    defaultUrl: process.env["FAKE_DEFAULT_URL"]!,
    env: process.env,
  }),
);
