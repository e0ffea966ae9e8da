import { execFile } from "node:child_process";
import { createHash, createHmac } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningSystem, startSystem } from "../support/running-system.ts";

const main = join(import.meta.dirname, "../../services/cli/src/main.ts");
const ITEMS = 24;

let folder: string;
let system: RunningSystem;
let receiver: Awaited<ReturnType<typeof listen>>;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "atelier-jobs-"));
  receiver = await listen();
  system = await start();
});

afterAll(async () => {
  await system?.stop();
  receiver?.close();
  rmSync(folder, { recursive: true, maxRetries: 5 });
});

describe("a bulk job on one machine", () => {
  let id: string;

  it("is taken from a sheet in GBK, and shown first with what it would come to", async () => {
    // "sku,产品\nA-1,马克杯\n" in GBK; the rest is ASCII.
    const head = Buffer.from("736b752cb2fac6b70a412d312cc2edbfcbb1ad0a", "hex");
    const rows = Array.from({ length: ITEMS - 1 }, (_, i) => `A-${i + 2},mug ${i + 2}\n`).join("");
    writeFileSync(join(folder, "products.csv"), Buffer.concat([head, Buffer.from(rows)]));
    const preview = JSON.parse((await jobs([...SUBMIT, "--dry-run", "--json"])).stdout);
    expect(preview.item_count).toBe(ITEMS);
    expect(preview.items[0]).toMatchObject({ row: 1, file: "A-1.png", prompt: "马克杯, 白色背景" });

    const submitted = await jobs([...SUBMIT, "--webhook", receiver.url, "--webhook-events", "job.done", "--json"]);
    ({ id } = JSON.parse(submitted.stdout));
    expect(JSON.parse((await jobs(["ls", "--json"])).stdout)).toMatchObject([
      { id, name: "products", item_count: ITEMS },
    ]);
  });

  it("goes on after kill -9 of everything, and tells its receiver of its end once, signed", async () => {
    await until(async () => (await show(id)).counts.done >= 3);
    await system.kill();
    system = await start();
    const before = (await show(id)).counts.done;
    expect(before).toBeGreaterThanOrEqual(3);

    const watched = await jobs(["watch", id]);
    expect([watched.code, watched.stdout]).toEqual([0, expect.stringContaining(`Done: ${ITEMS} pictures`)]);
    await until(() => receiver.calls.length > 0);
    const { headers, body } = receiver.calls[0]!;
    const { secret } = (await (await fetch(`${system.url}/v1/webhook-secret`)).json()) as { secret: string };
    const signed = `${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`;
    const key = Buffer.from(secret.replace("whsec_", ""), "base64");
    expect(headers["webhook-signature"]).toBe(`v1,${createHmac("sha256", key).update(signed).digest("base64")}`);
    expect(JSON.parse(body)).toMatchObject({ type: "job.done", data: { job: { id, counts: { done: ITEMS } } } });
    expect(receiver.calls).toHaveLength(1);
  });

  it("gives each picture once, with the digest that its manifest says, and again after it was lost", async () => {
    const first = await jobs(["download", id, "-o", "pictures"]);
    expect(first.stdout).toContain(`pictures: ${ITEMS} pictures`);
    const files = readdirSync(join(folder, "pictures"));
    expect(new Set(files)).toEqual(new Set(Array.from({ length: ITEMS }, (_, i) => `A-${i + 1}.png`)));
    const digests = files.map((file) => sha256(readFileSync(join(folder, "pictures", file))));
    expect(new Set(digests).size).toBe(ITEMS);
    const manifest = (await (await fetch(`${system.url}/v1/jobs/${id}/manifest`)).text()).trim().split("\n");
    const entries = manifest.map((line) => JSON.parse(line) as { file: string; sha256: string; seed: number });
    expect(entries.map(({ file, sha256: digest }) => `${file} ${digest}`).sort()).toEqual(
      files.map((file, i) => `${file} ${digests[i]}`).sort(),
    );

    rmSync(join(folder, "pictures/A-7.png"));
    expect((await jobs(["download", id, "-o", "pictures"])).stdout).toContain(`1 picture, `);
  });

  it("is deleted with its pictures", async () => {
    expect((await jobs(["rm", id])).code).toBe(0);
    const shown = await jobs(["show", id]);
    expect([shown.code, shown.stderr]).toEqual([1, `error: there is no job ${id} (field id) [NOT_FOUND]\n`]);
    const left = readdirSync(join(folder, "data/jobs/objects"), { recursive: true, withFileTypes: true });
    expect(left.filter((entry) => entry.isFile()).map(({ name }) => name)).toEqual([]);
  });
});

// --- Vocabulary ----------------------------------------------------------------------------------------------------

const SUBMIT = ["submit", "products.csv", "-t", "{产品}, 白色背景", "-s", "256", "--steps", "8", "--seed", "7"];

const start = () => startSystem(["--data", join(folder, "data")], { ATELIER_WEBHOOK_PRIVATE: "allow" });

function jobs(args: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  const env = { ...process.env, ATELIER_URL: system.url };
  return new Promise((resolve) => {
    execFile(process.execPath, [main, "jobs", ...args], { cwd: folder, env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

async function show(id: string): Promise<{ readonly counts: { readonly done: number } }> {
  const reply = await fetch(`${system.url}/v1/jobs/${id}`);
  return (await reply.json()) as { counts: { done: number } };
}

/** A webhook's receiver. */
async function listen() {
  const calls: { headers: Record<string, unknown>; body: string }[] = [];
  const server = createServer(async (request, reply) => {
    calls.push({ headers: request.headers, body: await text(request) });
    reply.end();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/hook`,
    calls,
    close: () => {
      server.closeAllConnections();
      server.close();
    },
  };
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

async function until(holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; !(await holds()); i++) {
    if (i > 600) throw new Error(`waited a minute; it said:\n${system.output()}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
