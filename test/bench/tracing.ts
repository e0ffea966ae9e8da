import { fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { inScope, NO_SPAN, startSpan, startTracing, traced } from "@atelier/telemetry";
import { type Bench, count, median, otherLoad, percentile, printTable, round, warnIfBusy } from "./support/bench.ts";
import { end } from "./support/child.ts";
import { GatewayProcess } from "./support/gateway-process.ts";
import { openLoop } from "./support/open-loop.ts";

const engineEntry = join(import.meta.dirname, "support/zero-engine.ts");
const HOLD_MS = 100;
const CALLS = 200_000;
/** What Linux counts processor time in, sysconf(_SC_CLK_TCK). */
const TICKS_PER_SECOND = 100;

const SETTINGS = {
  off: {},
  "1 %": { OTEL_TRACES_SAMPLER: "parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG: "0.01" },
  "100 %": { OTEL_TRACES_SAMPLER: "parentbased_always_on" },
} as const;
type Setting = keyof typeof SETTINGS;

/**
 * What traces cost. First a request's spans alone, in this process. Then whole gateways side by side, one for each setting,
 * over an engine that costs nothing: the processor time that each uses for a request, in turns.
 */
export const bench: Bench = {
  description: "what tracing costs: nanoseconds of a request's spans, and a gateway's processor time, off and on",
  options: {
    seconds: { default: "5", help: "of each gateway's turn" },
    rounds: { default: "4", help: "turns of each" },
    rate: { default: "100", help: "requests a second" },
  },
  async run(options) {
    const load = otherLoad();
    warnIfBusy(load);
    const collector = await startCollector();
    const spansNs = {} as Record<Setting, number>;
    for (const name of names) spansNs[name] = await spansOfOne(name, collector.env);
    const tracedOffNs = nsOf(() => traced("part", () => 1)) - nsOf(() => (() => 1)());

    const engine = fork(engineEntry, ["65536", String(HOLD_MS)], { stdio: ["ignore", 2, 2, "ipc"] });
    try {
      const [{ address }] = (await once(engine, "message")) as [{ address: string }];
      const whole = await gateways(address, options, collector.env);
      console.log(`a request's spans (${SPANS_OF_ONE} and 3 events), and a gateway at ${options["rate"]} requests/s:`);
      printTable([
        ["traces", "ns a request", "gateway, ms of processor a request", "of off", "p50 ms", "p99 ms"],
        ...names.map((name) => [
          name,
          spansNs[name].toFixed(0),
          whole[name].cpuMs.toFixed(3),
          (whole[name].cpuMs / whole.off.cpuMs).toFixed(3),
          whole[name].p50.toFixed(2),
          whole[name].p99.toFixed(2),
        ]),
      ]);
      console.log(`one traced() where tracing is off: ${tracedOffNs.toFixed(1)} ns over the call itself`);
      return {
        // Of the share that a busy fleet records.
        ratio: round(whole["1 %"].cpuMs / whole.off.cpuMs, 3),
        goal: 1.05,
        less_is_better: true,
        traced_off_ns: round(tracedOffNs, 1),
        spans_off_ns: round(spansNs.off, 0),
        spans_1_percent_ns: round(spansNs["1 %"], 0),
        spans_100_percent_ns: round(spansNs["100 %"], 0),
        cpu_ms_off: round(whole.off.cpuMs, 3),
        cpu_100_percent_of_off: round(whole["100 %"].cpuMs / whole.off.cpuMs, 3),
        delivered_bytes: collector.bytes(),
        load,
      };
    } finally {
      await end(engine);
      collector.stop();
    }
  },
};

const names = Object.keys(SETTINGS) as Setting[];
const SPANS_OF_ONE = 6;

/** As many as a gateway makes of one request, with what they say of themselves. */
function requestSpans(): void {
  const request = startSpan("POST /generate", { kind: "server" });
  if (request.recording)
    request.set({ "http.request.method": "POST", "http.route": "/generate", "atelier.request_id": "r" });
  inScope({ fields: { request_id: "r" }, span: request }, () => {
    traced("cache.lookup", (span) => span.set({ "atelier.cache.found": false }));
    traced("admission", () => {});
    traced("dispatch", (dispatch) => {
      traced("place", (span) => span.set({ "atelier.worker.id": "w" }));
      const call = dispatch.child("Generate", { kind: "client" });
      call.event("accepted");
      call.end();
    });
  });
  request.end();
}

/** Nanoseconds of a request's spans in this process; what is delivered meanwhile counts, as it does in a service. */
async function spansOfOne(name: Setting, env: Readonly<Record<string, string>>): Promise<number> {
  const tracing = await startTracing({ service: "bench", env: name === "off" ? {} : { ...env, ...SETTINGS[name] } });
  for (let i = 0; i < 20_000; i++) requestSpans();
  const ns: number[] = [];
  for (let turn = 0; turn < 20; turn++) {
    const from = process.hrtime.bigint();
    for (let i = 0; i < 1_000; i++) requestSpans();
    ns.push(Number(process.hrtime.bigint() - from) / 1_000);
    await new Promise((resolve) => setImmediate(resolve));
  }
  await tracing.close({ timeoutMs: 5_000 });
  return median(ns);
}

function nsOf(run: () => unknown): number {
  const ns: number[] = [];
  for (let turn = 0; turn < 7; turn++) {
    const from = process.hrtime.bigint();
    for (let i = 0; i < CALLS; i++) if (run() === NO_SPAN) throw new Error("it is a number");
    ns.push(Number(process.hrtime.bigint() - from) / CALLS);
  }
  return median(ns);
}

/** Processor milliseconds for each request, and what its caller waits beyond the engine's holding. */
async function gateways(
  worker: string,
  options: Readonly<Record<string, string>>,
  env: Readonly<Record<string, string>>,
) {
  const started = await Promise.all(
    names.map((name) =>
      GatewayProcess.start({
        workers: [worker],
        env: { ATELIER_IN_FLIGHT_MAX: "4096", ...(name !== "off" && { ...env, ...SETTINGS[name] }) },
      }),
    ),
  );
  const cpuMs: number[][] = names.map(() => []);
  const addedMs: number[][] = names.map(() => []);
  try {
    for (let turn = 0; turn <= count(options, "rounds"); turn++) {
      for (const [i, gateway] of started.entries()) {
        const before = processorMs(gateway.pid);
        const { answers, failures } = await openLoop({
          url: `${gateway.url}/generate`,
          perSecond: count(options, "rate"),
          seconds: count(options, "seconds"),
          headers: { accept: "image/png", "cache-control": "no-store" },
          body: (at) => ({ prompt: `a red mug ${at}`, steps: 20, seed: at, width: 512, height: 512 }),
        });
        if (failures.length > 0) throw new Error(`${failures.length} requests failed, the first with ${failures[0]}`);
        if (turn === 0) continue; // warms up
        cpuMs[i]!.push((processorMs(gateway.pid) - before) / answers.length);
        addedMs[i]!.push(...answers.map(({ latencyMs }) => latencyMs - HOLD_MS));
      }
    }
  } finally {
    await Promise.all(started.map((gateway) => gateway.stop()));
  }
  const figures = names.map((name, i) => {
    const [p50, p99] = [percentile(addedMs[i]!, 0.5), percentile(addedMs[i]!, 0.99)];
    return [name, { cpuMs: median(cpuMs[i]!), p50, p99 }] as const;
  });
  return Object.fromEntries(figures) as Record<Setting, { cpuMs: number; p50: number; p99: number }>;
}

/** User and system time of a process so far. Source: proc(5), /proc/[pid]/stat, fields 14 and 15. */
function processorMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return ((Number(fields[11]) + Number(fields[12])) * 1000) / TICKS_PER_SECOND;
}

/** Takes traces and throws them away. */
async function startCollector() {
  let bytes = 0;
  const server = createServer((request, response) => {
    request.on("data", (chunk: Buffer) => {
      bytes += chunk.length;
    });
    request.on("end", () => response.writeHead(200).end());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    env: { OTEL_EXPORTER_OTLP_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}` },
    bytes: () => bytes,
    stop: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}
