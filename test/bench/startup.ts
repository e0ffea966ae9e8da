import { spawn } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Bench, count, median, otherLoad, printTable, round, warnIfBusy } from "./support/bench.ts";
import { end, whileRunning } from "./support/child.ts";

const root = join(import.meta.dirname, "../..");
const GOAL_MS = 6000;
const RUN_MAX_MS = 120_000;

/** What a newcomer asks first: the defaults (512x512, made in two passes), and the model's native size. */
const REQUESTS = {
  default: { prompt: "国潮风T恤, 白色背景" },
  "256x256": { prompt: "国潮风T恤, 白色背景", width: 256, height: 256 },
} as const;

export const bench: Bench = {
  description: "from npm start (installed) to the first picture served",
  options: {
    runs: { default: "5", help: "runs of each kind; the median counts" },
    models: { default: "", help: "another model bundle than the embedded one" },
  },
  async run(options) {
    const runs = count(options, "runs");
    const models = options["models"] ? ["--models", options["models"]] : [];
    const load = otherLoad();
    warnIfBusy(load);
    const times: Record<keyof typeof REQUESTS, StartTimes[]> = { default: [], "256x256": [] };
    for (let i = 0; i < runs; i++) {
      times.default.push(await startAndDraw(REQUESTS.default, models));
      times["256x256"].push(await startAndDraw(REQUESTS["256x256"], models));
    }

    const medians = Object.entries(times).map(([kind, runsOfKind]) => ({
      kind,
      openMs: median(runsOfKind.map(({ openMs }) => openMs)),
      pictureMs: median(runsOfKind.map(({ pictureMs }) => pictureMs)),
      totalMs: median(runsOfKind.map(({ openMs, pictureMs }) => openMs + pictureMs)),
    }));
    console.log(`npm start to the first picture, ms, median of ${runs}:`);
    printTable([
      ["request", "open", "picture", "total"],
      ...medians.map(({ kind, openMs, pictureMs, totalMs }) => [kind, openMs, pictureMs, totalMs]),
    ]);
    const [asDefault, native] = medians;
    return {
      ratio: round(GOAL_MS / asDefault!.totalMs),
      goal: 1,
      goal_ms: GOAL_MS,
      default_ms: round(asDefault!.totalMs, 0),
      native_ms: round(native!.totalMs, 0),
      open_ms: round(asDefault!.openMs, 0),
      ratio_native: round(GOAL_MS / native!.totalMs),
      runs,
      load,
    };
  },
};

interface StartTimes {
  /** From the command to the line that says it is open. */
  readonly openMs: number;
  /** From there to the last byte of the picture. */
  readonly pictureMs: number;
}

async function startAndDraw(request: object, models: readonly string[]): Promise<StartTimes> {
  const home = await mkdtemp(join(tmpdir(), "atelier-home-"));
  const startedMs = performance.now();
  const child = spawn("npm", ["start", "--", "--port", "0", ...models], {
    cwd: root,
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, XDG_DATA_HOME: home },
  });
  let output = "";
  const opened = new Promise<string>((resolve) => {
    const read = (chunk: Buffer) => {
      output += chunk;
      const url = /Atelier is open at (http:\S+)/.exec(output)?.[1];
      if (url !== undefined) resolve(url);
    };
    child.stdout.on("data", read);
    child.stderr.on("data", read);
  });
  const watched = { name: "npm start", timeoutMs: RUN_MAX_MS, output: () => output };
  try {
    const url = await whileRunning(child, opened, watched);
    const openMs = performance.now() - startedMs;
    await whileRunning(child, draw(url, request), watched);
    return { openMs, pictureMs: performance.now() - startedMs - openMs };
  } finally {
    await end(child);
    await rm(home, { recursive: true, force: true, maxRetries: 5 });
  }
}

async function draw(url: string, request: object): Promise<void> {
  const reply = await fetch(`${url}/generate`, {
    method: "POST",
    headers: { "content-type": "application/json", accept: "image/png" },
    body: JSON.stringify(request),
  });
  const picture = Buffer.from(await reply.arrayBuffer());
  const isPng = picture.subarray(1, 4).toString("latin1") === "PNG";
  if (!reply.ok || !isPng)
    throw new Error(`POST /generate answered ${reply.status}: ${picture.toString("utf8", 0, 400)}`);
}
