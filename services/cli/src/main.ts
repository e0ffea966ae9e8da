/** The `atelier` command: reads the command line (program.ts) and runs a command (commands/). */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./program.ts";

const cli = join(import.meta.dirname, "..");
const root = join(cli, "../..");
const { version } = JSON.parse(readFileSync(join(cli, "package.json"), "utf8")) as { version: string };

process.exit(
  await run(process.argv.slice(2), {
    version,
    root,
    entries: {
      worker: join(root, "services/worker/src/main.ts"),
      gateway: join(root, "services/gateway/src/main.ts"),
      redis: join(root, "scripts/services/redis-process.ts"),
      nats: join(root, "scripts/services/nats-process.ts"),
      jobs: join(root, "services/jobs/src/main.ts"),
    },
    defaultUrl: "http://127.0.0.1:8080",
    env: process.env,
  }),
);
