/**
 * Finds the programs of others that development and tests run: on PATH, else in the cache folder, else brought into it
 * once, as a Debian package or with Go. Nothing is installed into the system and no service of it is started.
 */
import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { unpackDebian } from "./debian-package.ts";
import { goInstall } from "./go-install.ts";

export interface Program {
  readonly path: string;
  /** Lies over the process's own. */
  readonly env: Readonly<Record<string, string>>;
}

/** @throws NotToBeHad saying what was tried. */
export async function redisServer(): Promise<Program> {
  return onPath("redis-server") ?? (await unpackDebian({ packageName: "redis-server", program: "redis-server" }));
}

/** @throws NotToBeHad saying what was tried. */
export async function toxiproxyServer(): Promise<Program> {
  return (
    onPath("toxiproxy-server") ??
    (await goInstall({
      package: "github.com/Shopify/toxiproxy/v2/cmd/server",
      version: "v2.12.0",
      program: "toxiproxy-server",
      bringGo: false, // tests have a relay of their own
    }))
  );
}

/** Debian's own is too old for what bulk jobs need. @throws NotToBeHad saying what was tried. */
export async function natsServer(): Promise<Program> {
  return (
    onPath("nats-server") ??
    (await goInstall({
      package: "github.com/nats-io/nats-server/v2",
      version: "v2.15.2",
      program: "nats-server",
      bringGo: true,
    }))
  );
}

/** An S3 server that keeps objects in a folder. @throws NotToBeHad saying what was tried. */
export async function s3Server(): Promise<Program> {
  return (
    onPath("versitygw") ??
    (await goInstall({
      package: "github.com/versity/versitygw/cmd/versitygw",
      version: "v1.8.0",
      program: "versitygw",
      bringGo: true,
    }))
  );
}

/** @throws NotToBeHad saying what was tried. */
export async function prometheusServer(): Promise<Program> {
  return onPath("prometheus") ?? (await unpackDebian({ packageName: "prometheus", program: "prometheus" }));
}

/** Checks and tries out Prometheus' rules; of the same package. @throws NotToBeHad saying what was tried. */
export async function promtool(): Promise<Program> {
  return onPath("promtool") ?? (await unpackDebian({ packageName: "prometheus", program: "promtool" }));
}

export function onPath(name: string): Program | undefined {
  for (const folder of (process.env["PATH"] ?? "").split(delimiter)) {
    if (folder !== "" && existsSync(join(folder, name))) return { path: join(folder, name), env: {} };
  }
  return undefined;
}
