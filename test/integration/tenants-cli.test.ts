import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FakeWorker } from "@atelier/gateway/testing";
import { allReady, startGateway, type TestGateway } from "@atelier/gateway/testing/start-gateway";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const main = join(import.meta.dirname, "../../services/cli/src/main.ts");

describe("atelier keys and atelier tenants", () => {
  let folder: string;
  let worker: FakeWorker;
  let gateway: TestGateway;
  let admin: string;
  let env: Record<string, string>;
  const file = () => join(folder, "keys.json");

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "atelier-keys-"));
    const made = await atelier("keys create --offline --name ops --role admin --tenant ops --file keys.json", {
      folder,
    });
    admin = keyIn(made.stdout);
    worker = await FakeWorker.start();
    gateway = await startGateway([worker.address], {
      ATELIER_KEYS_FILE: file(),
      ATELIER_DATA_DIR: join(folder, "data"),
    });
    await gateway.until(allReady);
    env = { ATELIER_URL: gateway.url, ATELIER_API_KEY: admin };
  });
  afterAll(async () => {
    await gateway.stop();
    await worker.stop();
    rmSync(folder, { recursive: true });
  });

  const run = (line: string, more: Record<string, string> = {}) => atelier(line, { folder, env: { ...env, ...more } });

  it("make the first admin's key without a server: shown once, its hash in a file that is nobody else's", async () => {
    expect(readFileSync(file(), "utf8")).not.toContain(admin);
    expect(JSON.parse(readFileSync(file(), "utf8")).keys[0]).toMatchObject({
      name: "ops",
      role: "admin",
      tenant: "ops",
    });
    expect(statSync(file()).mode & 0o077).toBe(0);
    const printed = await run("keys create --offline --name other");
    const entry = JSON.parse(printed.stdout.trim().split("\n").at(-1)!);
    expect(entry.keys[0]).toMatchObject({ name: "other", hash: expect.stringMatching(/^sha256:/) });
    expect(printed.stdout).toContain("密钥只显示一次");
  });

  it("make, list, rotate and revoke keys at a running system", async () => {
    const made = await run(
      "keys create --name shop --tenant shop --scopes generate,models --priority bulk --expires 30d",
    );
    const key = keyIn(made.stdout);
    const id = key.split("_")[1]!;
    expect((await run("models ls", { ATELIER_API_KEY: key })).code).toBe(0);
    expect((await run("keys ls")).stdout).toMatch(
      new RegExp(`${id} +shop +shop +user +generate,models +bulk +\\d{4}-.* store`),
    );
    expect((await run("generate mug -o mug.png", { ATELIER_API_KEY: key })).code).toBe(0);

    const rotated = await run(`keys rotate ${id} --grace 0`);
    expect(rotated.stdout).toContain("The secret before has ended.");
    const old = await run("models ls", { ATELIER_API_KEY: key });
    expect([old.code, old.stderr]).toEqual([1, "error: the key is unknown or was revoked [UNAUTHENTICATED]\n"]);
    expect((await run("models ls", { ATELIER_API_KEY: keyIn(rotated.stdout) })).code).toBe(0);

    expect((await run(`keys revoke ${id}`)).stdout).toContain("已吊销");
    expect((await run("models ls", { ATELIER_API_KEY: keyIn(rotated.stdout) })).code).toBe(1);
  });

  it("set a tenant's limits one by one, and take them away", async () => {
    await run("tenants set press --requests-per-minute 60 --price 1.5 --models atelier-tiny");
    const set = JSON.parse((await run("tenants set press --images-per-month 9 --weight 2 --json")).stdout);
    expect(set).toMatchObject({ requests_per_minute: 60, price_per_device_hour: 1.5, images_per_month: 9 });
    expect(set.models).toEqual(["atelier-tiny"]);
    const none = await run("tenants set press --requests-per-minute none --models none --json");
    expect(none.stderr).toBe("");
    const less = JSON.parse(none.stdout);
    expect(less).toMatchObject({ requests_per_minute: null, images_per_month: 9, models: null });
    expect((await run("tenants ls")).stdout).toMatch(/press +- +- +- +9 +- +1\.5 +2 +all +all +store/);
  });

  it.each([
    ["keys ls", { ATELIER_API_KEY: "" }, 1, /there is no key/],
    ["keys ls --key atk_wrong", {}, 1, /not a key of this service/],
    ["keys revoke abcdefabcdef", {}, 1, /there is no key abcdefabcdef \(field id\) \[NOT_FOUND\]/],
    ["keys create --tenant shop", {}, 2, /required option '--name <text>'/],
    ["keys create --name x --role king", {}, 2, /Allowed choices are user, operator, admin/],
    ["keys create --name x --expires soon", {}, 2, /a date such as/],
    ["keys create --name x --expires 2020-01-01", {}, 1, /expires_at is 2020-01-01.* has passed/],
    ["keys create --name x --scopes draw", {}, 1, /scopes\[0\] is "draw".*INVALID_REQUEST/],
    ["keys create --name x --file keys.json", {}, 2, /--file goes with --offline/],
    [
      "keys create --offline --name x --file /nowhere/keys.json",
      {},
      1,
      /\/nowhere\/keys.json cannot take the key: ENOENT/,
    ],
    ["tenants set shop --images-per-month 0", {}, 2, /whole number from 1/],
    ["tenants set ../shop --images-per-month 1", {}, 1, /INVALID_REQUEST|NOT_FOUND/],
  ] as const)("say what is wrong: %s", async (line, more, code, message) => {
    const { code: ended, stderr } = await run(line, more);
    expect(stderr).toMatch(message);
    expect(ended).toBe(code);
  });
});

const keyIn = (text: string) => /atk_\w{12}_[\w-]{43}/.exec(text)![0];

interface Ran {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function atelier(line: string, { folder, env = {} }: { folder: string; env?: Record<string, string> }): Promise<Ran> {
  return new Promise((resolve) => {
    const given = { PATH: process.env["PATH"], NO_COLOR: "1", ...env };
    execFile(process.execPath, [main, ...line.split(" ")], { cwd: folder, env: given }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}
