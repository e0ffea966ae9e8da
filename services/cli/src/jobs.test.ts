import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { answerJson, fakeJobsGateway, jobJson, sha256 } from "./testing/fake-jobs-gateway.ts";

describe("atelier jobs submit", () => {
  it("sends the options and then the sheet, as a form, and says how to follow the job", async () => {
    write("products.csv", "product,colour\nT恤,红\n");
    const atelier = run("submit", "products.csv", "--template", "{product}, {colour}, 白色背景", "--variants", "2");
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stdout).toContain("job_a  4 pictures, about 13 device seconds, 0.50 EUR");
    expect(atelier.stdout).toContain("atelier jobs watch job_a");
    expect(atelier.stderr).toBe("");

    const [{ line, headers, body }] = gateway.asked as [(typeof gateway.asked)[0]];
    expect(line).toBe("POST /v1/jobs");
    expect(headers["idempotency-key"]).toMatch(/^[0-9a-f-]{36}$/);
    const parts = partsOf(body, headers["content-type"]!);
    expect(parts.map(({ head }) => head)).toEqual([
      expect.stringContaining('name="job"'),
      expect.stringMatching(/name="sheet"; filename="products.csv"\r\ncontent-type: text\/csv/),
    ]);
    expect(JSON.parse(parts[0]!.content)).toEqual({
      name: "products",
      template: { prompt: "{product}, {colour}, 白色背景", variants: 2 },
    });
    expect(parts[1]!.content).toBe("product,colour\nT恤,红\n");
  });

  it("lays what is given over the file of options, field by field", async () => {
    write("rows.jsonl", '{"product":"mug"}\n');
    const file = { name: "spring", template: { prompt: "{product}", seed: 7, defaults: { steps: 20, width: 256 } } };
    write("job.json", JSON.stringify(file));
    const flags = ["--preset", "studio", "--preset", "street", "--steps", "8", "-n", "模糊", "--format", "webp"];
    const more = ["--on-error", "skip", "--priority", "standard", "--charset", "gbk", "--delete-after", "7"];
    const hook = ["--webhook", "https://shop.example/hook", "--webhook-events", "job.done,job.cancelled"];
    const key = ["--idempotency-key", "once"];
    const atelier = run("submit", "rows.jsonl", "--template-file", "job.json", ...flags, ...more, ...hook, ...key);
    expect(await atelier.exitCode).toBe(0);
    const [{ headers, body }] = gateway.asked as [(typeof gateway.asked)[0]];
    expect(headers["idempotency-key"]).toBe("once");
    const [options, sheet] = partsOf(body, headers["content-type"]!);
    expect(sheet!.head).toContain("application/x-ndjson");
    expect(JSON.parse(options!.content)).toEqual({
      name: "spring",
      template: {
        prompt: "{product}",
        negative_prompt: "模糊",
        presets: ["studio", "street"],
        seed: 7,
        defaults: { steps: 8, width: 256, format: "webp" },
      },
      on_error: "skip",
      priority: "standard",
      charset: "gbk",
      delete_after_days: 7,
      webhook: { url: "https://shop.example/hook", events: ["job.done", "job.cancelled"] },
    });
  });

  it("reads a sheet of 100 MB as it is sent, in little memory", async () => {
    const file = join(folder, "big.csv");
    writeFileSync(file, "product\n");
    for (let i = 0; i < 100; i++) writeFileSync(file, `${"x".repeat(1023)}\n`.repeat(1024), { flag: "a" });
    const limited = { NODE_OPTIONS: "--max-old-space-size=64" };
    let bytes = 0;
    gateway.receive("POST /v1/jobs", async (request, response) => {
      for await (const chunk of request) bytes += chunk.length;
      answerJson(response, jobJson({}), 201);
    });
    const atelier = run("submit", "big.csv", "--template", "{product}", limited);
    expect(await atelier.exitCode).toBe(0);
    expect(bytes).toBeGreaterThan(statSync(file).size);
  });

  it("prints the server's words, with the line of the sheet that is wrong, and keeps nothing", async () => {
    write("products.csv", "product\nmug\n");
    gateway.answer("POST /v1/jobs", (_request, response) => {
      const message = "line 70001: the row has 3 cells; the header has 2";
      answerJson(response, { error: { code: "INVALID_REQUEST", message, field: "sheet", request_id: "r" } }, 400);
    });
    const atelier = run("submit", "products.csv", "--template", "{product}");
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toBe(
      "error: line 70001: the row has 3 cells; the header has 2 (field sheet) [INVALID_REQUEST]\n",
    );
  });

  it("shows with --dry-run what it would come to, with its price and the first prompts", async () => {
    write("products.csv", "product\nmug\n");
    gateway.answer("POST /v1/jobs", (_request, response) => answerJson(response, PREVIEW));
    const atelier = run("submit", "products.csv", "--template", "{product}", "--dry-run");
    expect(await atelier.exitCode).toBe(0);
    expect(gateway.asked[0]!.line).toBe("POST /v1/jobs?dry_run=true");
    expect(gateway.asked[0]!.headers["idempotency-key"]).toBeUndefined();
    expect(atelier.stdout).toContain("2,000 pictures, about 3,600 device seconds, 4.20 EUR, 30 min as things are now");
    expect(atelier.stdout).toContain("It would be refused");
    expect(atelier.stdout).toContain("2 cells of colour are empty");
    expect(atelier.stdout).toContain("line 7: colour is empty");
    expect(atelier.stdout).toMatch(/ROW +FILE +SEED +PRESET +PROMPT\n1 +mug\.png +7 +- +a mug\n/);
  });

  it.each([
    { args: ["submit"], code: 2, says: "give a sheet" },
    { args: ["submit", "nowhere.csv", "-t", "x"], code: 1, says: "nowhere.csv cannot be read: ENOENT" },
    { args: ["submit", "sheet.xlsx", "-t", "x"], code: 2, says: "a sheet's name ends in .csv" },
    { args: ["submit", "a.csv", "--template-file", "nowhere.json"], code: 1, says: "nowhere.json cannot be read" },
    { args: ["submit", "a.csv", "--on-error", "ignore"], code: 2, says: "reject, skip" },
    { args: ["submit", "a.csv", "--webhook", "shop"], code: 2, says: "--webhook" },
    { args: ["retry", "job_a", "--items", "one"], code: 2, says: "numbers of items" },
    { args: ["show", "job_x"], code: 1, says: "there is no /v1/jobs/job_x [NOT_FOUND]" },
  ])("exits $code when it cannot be: $args", async ({ args, code, says }) => {
    const atelier = run(...args);
    expect(await atelier.exitCode).toBe(code);
    expect(atelier.stderr).toContain(says);
  });
});

describe("atelier jobs watch", () => {
  it("says how far the job is, comes back where the connection breaks off, and how it ended", async () => {
    gateway.job = jobJson({
      status: "running",
      counts: { queued: 3, done: 1 },
      items_per_minute: 350,
      eta_ms: 480_000,
    });
    let connections = 0;
    let lastEventId: unknown;
    gateway.answer("GET /v1/jobs/job_a/events", (request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" });
      if (connections++ === 0) {
        event(response, 41, jobJson({ status: "paused", counts: { queued: 2, done: 2 } }));
        setTimeout(() => response.destroy(), 50);
        return;
      }
      lastEventId = request.headers["last-event-id"];
      const counts = { queued: 0, done: 4 };
      gateway.job = jobJson({ status: "done", counts, ended_at: "2026-11-23T10:00:00.000Z" });
      const spent = { device_seconds: 9, cost: 0.4, currency: "EUR" };
      event(response, 42, jobJson({ status: "done", counts, spent })); // its manifest is not there yet
      event(response, 43, jobJson({ status: "done", counts, ended_at: "2026-11-23T10:00:00.000Z" }));
    });
    const atelier = run("watch", "job_a");
    expect(await atelier.exitCode).toBe(0);
    expect([connections, lastEventId]).toEqual([2, "41"]);
    expect(atelier.stderr.split("\n").slice(0, 2)).toEqual([
      "running 1 of 4  350 a minute  8 min left",
      "paused 2 of 4",
    ]);
    expect(atelier.stdout).toContain("Done: 4 pictures, 0.50 EUR");
    expect(atelier.stdout).toContain("atelier jobs download job_a");
  });

  it("exits 1 where items failed, and says how to try them again", async () => {
    gateway.job = jobJson({
      status: "done",
      counts: { queued: 0, done: 3, failed: 1 },
      ended_at: "2026-11-23T10:00:00Z",
    });
    const atelier = run("watch", "job_a");
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stdout).toContain("1 failed. Try them again · 重试: atelier jobs retry job_a");
  });

  it("leaves the job alone on Ctrl-C and says how to come back", async () => {
    gateway.job = jobJson({ status: "running" });
    gateway.answer("GET /v1/jobs/job_a/events", (_request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream" }).write(": here\n\n");
    });
    const atelier = run("submit", "--watch", "--template-file", write("job.json", "{}"));
    await atelier.said("queued 0 of 4").catch(() => atelier.said("running 0 of 4"));
    atelier.signal("SIGINT");
    expect(await atelier.exitCode).toBe(130);
    expect(atelier.stderr).toContain("The job goes on; come back with · 任务继续运行: atelier jobs watch job_a");
    expect(gateway.asked.map(({ line }) => line)).not.toContain("POST /v1/jobs/job_a/cancel");
  });
});

describe("atelier jobs", () => {
  it("lists jobs as a table, and as JSON", async () => {
    gateway.job = jobJson({ status: "running", held_for: "images_per_month", counts: { queued: 3, done: 1 } });
    const atelier = run("ls", "--status", "running", "--name", "launch", "--limit", "5");
    expect(await atelier.exitCode).toBe(0);
    expect(gateway.asked[0]!.line).toBe("GET /v1/jobs?status=running&name=launch&limit=5");
    expect(atelier.stdout).toMatch(
      /ID +NAME +STATUS +DONE +FAILED +LEFT +SPENT +CREATED\njob_a +launch +running, held \(images_per_month\) +1 of 4/,
    );
    const json = run("ls", "--json");
    expect(await json.exitCode).toBe(0);
    expect(JSON.parse(json.stdout)[0].id).toBe("job_a");
  });

  it("shows one with what failed of it and why", async () => {
    gateway.job = jobJson({ status: "done", counts: { queued: 0, done: 3, failed: 1 } });
    const error = { code: "NUMERIC_FAILURE", message: "NaN in the latents", attempts: 1 };
    const item = { index: 2, row: 3, sku: "TEE-1", file: "TEE-1.png", state: "failed", error };
    gateway.answer("GET /v1/jobs/job_a/items", (_request, response) => answerJson(response, { items: [item] }));
    const atelier = run("show", "job_a");
    expect(await atelier.exitCode).toBe(0);
    expect(atelier.stdout).toContain("job_a  launch\ndone 4 of 4  1 failed\n");
    expect(atelier.stdout).toMatch(/2 +3 +TEE-1 +1 +NaN in the latents \[NUMERIC_FAILURE\]/);
  });

  it.each([
    { args: ["pause", "job_a"], asks: "POST /v1/jobs/job_a/pause", says: "is paused" },
    { args: ["resume", "job_a"], asks: "POST /v1/jobs/job_a/resume", says: "is going on" },
    { args: ["cancel", "job_a"], asks: "POST /v1/jobs/job_a/cancel", says: "is cancelled" },
    { args: ["rm", "job_a"], asks: "DELETE /v1/jobs/job_a", says: "are deleted" },
  ])("$args asks for it", async ({ args, asks, says }) => {
    const atelier = run(...args);
    expect(await atelier.exitCode).toBe(0);
    expect(gateway.asked.map(({ line }) => line)).toEqual([asks]);
    expect(atelier.stdout).toContain(says);
  });

  it("retries what failed, or some of it", async () => {
    gateway.answer("POST /v1/jobs/job_a/retry", (_request, response) =>
      answerJson(response, { items: 2, job: jobJson({}) }),
    );
    const atelier = run("retry", "job_a", "--items", "3,17");
    expect(await atelier.exitCode).toBe(0);
    expect(JSON.parse(gateway.asked[0]!.body)).toEqual({ items: [3, 17] });
    expect(atelier.stdout).toContain("2 items are made again");
  });
});

describe("atelier jobs download", () => {
  it("writes every picture that is there, and run again fetches only those that are missing or damaged", async () => {
    serve([
      picture(0, "red/tee.png", "red"),
      picture(1, "blue.png", "blue"),
      { ...picture(2, "no.png", ""), state: "failed" },
    ]);
    const first = run("download", "job_a", "-o", "out");
    expect(await first.exitCode).toBe(0);
    expect(first.stdout).toContain("out: 2 pictures, 7 B");
    expect(readFileSync(join(folder, "out/red/tee.png"), "utf8")).toBe("red");
    expect(readdirSync(join(folder, "out")).sort()).toEqual(["blue.png", "red"]);

    write("out/blue.png", "blur");
    gateway.asked.length = 0;
    const second = run("download", "job_a", "-o", "out");
    expect(await second.exitCode).toBe(0);
    expect(second.stdout).toContain("out: 1 picture, 4 B; 1 were there already");
    expect(gateway.asked.map(({ line }) => line)).toEqual([
      "GET /v1/jobs/job_a/manifest",
      "GET /v1/jobs/job_a/items/1/image",
    ]);
    expect(readFileSync(join(folder, "out/blue.png"), "utf8")).toBe("blue");
  });

  it("refuses bytes that are not what the manifest says, and leaves no file of them", async () => {
    serve([{ ...picture(0, "red.png", "red"), sha256: sha256("green") }]);
    const atelier = run("download", "job_a", "-o", "out");
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain(`red.png came with sha256 ${sha256("red")}`);
    expect(readdirSync(join(folder, "out"))).toEqual([]);
  });

  it.each(["../outside.png", "/etc/outside.png", "a/../../outside.png"])(
    "writes nothing outside of the folder: %s",
    async (file) => {
      serve([picture(0, file, "red")]);
      const atelier = run("download", "job_a", "-o", "out");
      expect(await atelier.exitCode).toBe(1);
      expect(atelier.stderr).toContain("which is outside of out");
      expect(readdirSync(folder)).toEqual(["out"]);
    },
  );

  it("fetches it as one ZIP", async () => {
    gateway.answer("GET /v1/jobs/job_a/archive", (_request, response) => void response.end("the bytes of a ZIP"));
    const atelier = run("download", "job_a", "-o", "pictures.zip");
    expect(await atelier.exitCode).toBe(0);
    expect(readFileSync(join(folder, "pictures.zip"), "utf8")).toBe("the bytes of a ZIP");
    expect(atelier.stdout).toContain("pictures.zip: 18 B");
  });

  it("leaves no half file where a ZIP breaks off", async () => {
    gateway.answer("GET /v1/jobs/job_a/archive", (_request, response) => {
      response.writeHead(200, { "content-length": 100 }).write("half", () => response.destroy());
    });
    const atelier = run("download", "job_a", "-o", "pictures.zip");
    expect(await atelier.exitCode).toBe(1);
    expect(atelier.stderr).toContain("error: pictures.zip: ");
    expect(readdirSync(folder)).toEqual([]);
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

const PREVIEW = {
  item_count: 2_000,
  predicted: { device_seconds: 3_600, cost: 4.2, currency: "EUR" },
  eta_ms: 1_800_000,
  fits: false,
  notes: ["2 cells of colour are empty"],
  skipped_count: 1,
  skipped: [{ line: 7, message: "colour is empty" }],
  items: [{ row: 1, file: "mug.png", prompt: "a mug", seed: 7, preset: null }],
};

let gateway: Awaited<ReturnType<typeof fakeJobsGateway>>;
let folder = "";
let running: ChildProcess[] = [];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "atelier-jobs-cli-"));
  gateway = await fakeJobsGateway();
});

afterEach(() => {
  for (const child of running) child.kill("SIGKILL");
  running = [];
  gateway.close();
  rmSync(folder, { recursive: true });
});

/** `atelier jobs ...` in `folder`, at the fake gateway; a last argument that is an object is environment. */
function run(...given: (string | Record<string, string>)[]) {
  const args = given.filter((arg) => typeof arg === "string");
  const more = given.filter((arg) => typeof arg !== "string");
  const { ATELIER_API_KEY: _key, INIT_CWD: _cwd, ...inherited } = process.env;
  const env = Object.assign({ ...inherited, ATELIER_URL: gateway.url, FAKE_DEFAULT_URL: gateway.url }, ...more);
  const main = join(import.meta.dirname, "testing/main-with-fakes.ts");
  const child = spawn(process.execPath, [main, "jobs", ...args], {
    cwd: folder,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  running.push(child);
  const output = {
    stdout: "",
    stderr: "",
    exitCode: new Promise<number | null>((resolve) => child.once("close", resolve)),
    signal: (name: NodeJS.Signals) => child.kill(name),
    said: async (text: string) => {
      for (let i = 0; !output.stderr.includes(text); i++) {
        if (i > 200) throw new Error(`waited for ${text}; it said ${output.stderr}`);
        await sleep(20);
      }
    },
  };
  child.stdout.on("data", (chunk) => {
    output.stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    output.stderr += chunk;
  });
  return output;
}

function write(name: string, content: string): string {
  writeFileSync(join(folder, name), content);
  return name;
}

/** Of multipart/form-data. */
function partsOf(body: string, contentType: string) {
  const boundary = `--${/boundary=(.*)/.exec(contentType)![1]}`;
  const parts = body.split(boundary).slice(1, -1);
  return parts.map((part) => {
    const at = part.indexOf("\r\n\r\n");
    return { head: part.slice(2, at), content: part.slice(at + 4, -2) };
  });
}

function event(response: ServerResponse, id: number, job: ReturnType<typeof jobJson>): void {
  response.write(`id: ${id}\nevent: job\ndata: ${JSON.stringify({ job })}\n\n`);
}

function picture(index: number, file: string, content: string) {
  return { index, state: "done", file, sha256: sha256(content), bytes: content.length, content };
}

/** The manifest and the pictures that it names. */
function serve(pictures: readonly (ReturnType<typeof picture> | Record<string, unknown>)[]): void {
  const manifest = pictures.map((one) => JSON.stringify({ ...one, content: undefined })).join("\n");
  gateway.answer("GET /v1/jobs/job_a/manifest", (_request, response) => void response.end(`${manifest}\n`));
  for (const { index, content } of pictures) {
    gateway.answer(`GET /v1/jobs/job_a/items/${index}/image`, (_request, response) => void response.end(content));
  }
}
