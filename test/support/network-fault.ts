import { createServer, type Server, Socket } from "node:net";
import { tmpdir } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { NotToBeHad } from "../../scripts/services/cache-folder.ts";
import { type Program, toxiproxyServer } from "../../scripts/services/programs.ts";
import { ChildProgram } from "./child-program.ts";
import { freePorts } from "./free-ports.ts";

/** A way to a server of loopback that can be made bad. */
export interface BadNetwork {
  /** The port of loopback that leads to the server. */
  readonly port: number;
  /** What comes back from the server comes so much later. */
  delay(ms: number): Promise<void>;
  /** Ends every connection and refuses new ones. */
  cut(): Promise<void>;
  /** Connections stay, and nothing comes through; not even later over those that there were. */
  silence(): Promise<void>;
  /** As at the start, for new connections. */
  heal(): Promise<void>;
  stop(): Promise<void>;
}

/** By toxiproxy where it can be had, by a relay of our own elsewhere. */
export async function badNetworkTo(port: number): Promise<BadNetwork> {
  return (await toxiproxyAtHand()) ? toxiproxyTo(port) : relayTo(port);
}

/** False on a machine without it and without a Go that builds it. */
export async function toxiproxyAtHand(): Promise<boolean> {
  try {
    await toxiproxyServer();
    return true;
  } catch (error) {
    if (error instanceof NotToBeHad) return false;
    throw error;
  }
}

/** A toxiproxy process with one proxy. */
export async function toxiproxyTo(upstreamPort: number): Promise<BadNetwork> {
  const program: Program = await toxiproxyServer();
  const [apiPort, port] = await freePorts(2);
  const child = new ChildProgram(program, ["-host", "127.0.0.1", "-port", String(apiPort)], { cwd: tmpdir() });
  const api = async (method: string, path: string, body?: object): Promise<Response> => {
    const json =
      body === undefined ? {} : { body: JSON.stringify(body), headers: { "content-type": "application/json" } };
    const response = await fetch(`http://127.0.0.1:${apiPort}${path}`, { method, ...json });
    const text = await response.text();
    if (!response.ok) throw new Error(`toxiproxy: ${method} ${path}: ${response.status} ${text}`);
    return response;
  };
  await child.until(
    () =>
      api("GET", "/version").then(
        () => true,
        () => false,
      ),
    "toxiproxy answers",
  );
  const listen = `127.0.0.1:${port}`;
  await api("POST", "/proxies", { name: "way", listen, upstream: `127.0.0.1:${upstreamPort}`, enabled: true });
  return {
    port: port!,
    delay: async (latency) => {
      await api("POST", "/reset");
      await api("POST", "/proxies/way/toxics", { type: "latency", stream: "downstream", attributes: { latency } });
    },
    cut: async () => {
      await api("POST", "/proxies/way", { enabled: false });
    },
    silence: async () => {
      await api("POST", "/proxies/way/toxics", { type: "timeout", stream: "downstream", attributes: { timeout: 0 } });
    },
    heal: async () => {
      await api("POST", "/reset");
    },
    stop: () => child.kill(),
  };
}

/** The same in this process, for a machine without Go; on any free port where none is named. */
export async function relayTo(upstreamPort: number, ownPort?: number): Promise<BadNetwork> {
  const sockets = new Set<Socket>();
  let delayMs = 0;
  let silent = false;
  let server: Server | undefined;
  const silenced = new Set<Socket>();
  const pass = (chunk: Buffer, to: Socket) => {
    // What comes over a connection comes whole and in order, or not at all.
    if (silent) silenced.add(to);
    if (!silenced.has(to) && !to.destroyed) to.write(chunk);
  };
  const join = (outside: Socket) => {
    const inside = new Socket();
    inside.connect(upstreamPort, "127.0.0.1");
    for (const [socket, other] of [
      [outside, inside],
      [inside, outside],
    ] as const) {
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("error", () => {}); // its close ends the other
      socket.on("close", () => {
        sockets.delete(socket);
        silenced.delete(socket);
        other.destroy();
      });
    }
    outside.on("data", (chunk: Buffer) => pass(chunk, inside));
    // In order: what comes after the delay was taken away does not overtake what came before.
    let last = Promise.resolve<unknown>(undefined);
    inside.on("data", (chunk: Buffer) => {
      const due = sleep(delayMs);
      last = last.then(() => due).then(() => pass(chunk, outside));
    });
  };
  const port = ownPort ?? (await freePorts(1))[0];
  const listen = async () => {
    if (server !== undefined) return;
    const opening = createServer(join);
    await new Promise<void>((resolve, reject) => opening.once("error", reject).listen(port, "127.0.0.1", resolve));
    server = opening;
  };
  const cut = async () => {
    const closing = server;
    server = undefined;
    const closed = new Promise((resolve) => (closing === undefined ? resolve(undefined) : closing.close(resolve)));
    for (const socket of sockets) socket.resetAndDestroy();
    await closed;
  };
  await listen();
  return {
    port: port!,
    delay: async (ms) => {
      delayMs = ms;
    },
    cut,
    silence: async () => {
      silent = true;
      for (const socket of sockets) silenced.add(socket);
    },
    heal: async () => {
      delayMs = 0;
      silent = false;
      await listen();
    },
    stop: cut,
  };
}
