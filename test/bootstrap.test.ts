import { type ChildProcess, spawn } from "node:child_process";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { afterEach, beforeEach, describe, expect, it } from "vitest";

const source = join(import.meta.dirname, "../bootstrap.mjs");
const { checkDisk, checkNodeVersion, explainFailure } = await import(pathToFileURL(source).href);

describe("bootstrap", () => {
  it("installs what package-lock.json says, with development packages and without CUDA downloads", async () => {
    const { exitCode, stderr } = await bootstrap({ NODE_ENV: "production", npm_config_workspace: "one" });
    expect({ exitCode, stderr }).toEqual({
      exitCode: 0,
      stderr: expect.stringMatching(/^Installing packages \(once, about 30 s\) \.\.\. done in \d+ s\.\n$/),
    });
    expect(installs()).toEqual(["ci --include=dev --include=optional skip workspace=undefined"]);
  });

  it("does nothing and says nothing the second time", async () => {
    await bootstrap();
    expect(await bootstrap()).toEqual({ exitCode: 0, stdout: "", stderr: "" });
    expect(installs()).toHaveLength(1);
  });

  it("installs again when a dependency changed", async () => {
    await bootstrap();
    lock({ left: "2.0.0" });
    await bootstrap();
    expect(installs()).toHaveLength(2);
  });

  it("installs nothing when only a script changed, or when npm install was run by hand", async () => {
    await bootstrap();
    write("package.json", { ...JSON.parse(read("package.json")), scripts: { hello: "echo" } });
    expect(await bootstrap()).toMatchObject({ exitCode: 0, stderr: "" });

    lock({ left: "2.0.0" });
    npmInstalled();
    expect(await bootstrap()).toMatchObject({ exitCode: 0, stderr: "" });
    expect(installs()).toHaveLength(1);
  });

  it("leaves a dependency that package-lock.json does not know to npm, which says so", async () => {
    await bootstrap();
    write("packages/one/package.json", { name: "one", dependencies: { left: "1.0.0", right: "1.0.0" } });
    const { exitCode, stderr } = await bootstrap({ FAKE_NPM: "npm error code EUSAGE" });
    expect(exitCode).toBe(1);
    expect(stderr).toContain("run: npm install");
  });

  it("installs once when two start at the same time, and both go on", async () => {
    const [first, second] = await Promise.all([bootstrap({ FAKE_NPM_MS: "600" }), bootstrap({ FAKE_NPM_MS: "600" })]);
    expect([first.exitCode, second.exitCode]).toEqual([0, 0]);
    expect(first.stderr + second.stderr).toMatch(/Another process \(pid \d+\) installs the packages; waiting/);
    expect(installs()).toHaveLength(1);
  });

  it.each([
    { holder: "died", pid: 2 ** 22 + 1, touchedMs: 0 },
    { holder: "lives under the number of another program", pid: process.pid, touchedMs: -60_000 },
  ])("takes over a lock whose holder $holder", async ({ pid, touchedMs }) => {
    write(".atelier/install.lock", `${pid}\n`);
    const touched = new Date(Date.now() + touchedMs);
    utimesSync(join(root, ".atelier/install.lock"), touched, touched);
    expect(await bootstrap()).toMatchObject({ exitCode: 0 });
    expect(installs()).toHaveLength(1);
  });

  it("passes Ctrl-C on to npm, releases the lock, and installs again next time", async () => {
    const interrupted = begin({ FAKE_NPM_MS: "60000" });
    await until(() => existsSync(join(root, "npm-log")));
    interrupted.child.kill("SIGINT");
    expect(await interrupted.ended).toMatchObject({ exitCode: 130, stderr: expect.stringContaining("interrupted") });
    expect(existsSync(join(root, ".atelier/install.lock"))).toBe(false);

    expect(await bootstrap()).toMatchObject({ exitCode: 0 });
    expect(installs()).toHaveLength(2);
  });

  it("says when npm was kept from running the install script of Node", async () => {
    const { exitCode, stderr } = await bootstrap({ FAKE_NPM_SKIPS_NODE: "yes" });
    expect(exitCode).toBe(1);
    expect(stderr).toContain("ignore-scripts");
  });

  it("names the file that a damaged checkout lacks", async () => {
    rmSync(join(root, "package-lock.json"));
    expect(await bootstrap()).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining("git checkout -- package-lock.json"),
    });
  });

  it.each([
    { npmSays: "npm error code ENOSPC\nnpm error syscall write", weSay: "The disk was full, at /" },
    { npmSays: "npm error code ENOTFOUND\nnpm error network request failed", weSay: "无法连接 npm 源" },
    { npmSays: "npm error code EACCES", weSay: "没有写入权限" },
    { npmSays: "npm error code SELF_SIGNED_CERT_IN_CHAIN", weSay: "NODE_EXTRA_CA_CERTS" },
    { npmSays: "npm error code ETARGET", weSay: "a mirror may lag behind" },
    { npmSays: "npm error something new", weSay: "npm could not install the packages" },
  ])("explains '$npmSays', and shows it", async ({ npmSays, weSay }) => {
    const { exitCode, stderr } = await bootstrap({ FAKE_NPM: npmSays });
    expect(exitCode).toBe(1);
    expect(stderr).toContain(weSay);
    expect(stderr).toContain(`npm said:\n${npmSays}`);
    expect(existsSync(join(root, ".atelier/install.lock"))).toBe(false);
  });

  it("shows of a long failure the lines that tell its cause", () => {
    const output = `gyp info\n${"x\n".repeat(50)}npm error code EUSAGE\n${"npm error help\n".repeat(30)}`;
    const message = explainFailure(output, "/here", 5e9);
    expect(message).toContain("npm error code EUSAGE");
    expect(message.split("\n").length).toBeLessThan(20);
  });

  it("refuses a disk that is too full before npm fills it, and says how much is needed", () => {
    expect(() => checkDisk(0.4e9, "/here")).toThrow(/\/here is too full.*0\.4 GB are free.*1\.4 GB are needed/);
    expect(() => checkDisk(2e9, "/here")).not.toThrow();
    expect(() => checkDisk(undefined, "/here")).not.toThrow();
  });

  it("refuses a Node that is too old, naming its version and the one needed", async () => {
    const old =
      "data:text/javascript,Object.defineProperty(process,'versions',{value:{...process.versions,node:'18.19.1'}})";
    const { exitCode, stderr } = await bootstrap({ NODE_OPTIONS: `--import ${old}` });
    expect(exitCode).toBe(1);
    expect(stderr).toContain("Atelier needs Node 20 or newer; this is Node 18.19.1");
    expect(installs()).toEqual([]);
    expect(() => checkNodeVersion("20.0.0")).not.toThrow();
    expect(() => checkNodeVersion("9.9.9")).toThrow();
  });

  it("keeps to syntax that Node 12 parses, so that an old Node gets as far as that message", () => {
    const code = read("bootstrap.mjs").replaceAll(/\/\*\*[\s\S]*?\*\/|\/\/.*|`[^`]*`|"[^"]*"/g, "");
    expect(code).not.toMatch(/\?\.[\w[(]|\?\?|\|\|=|&&=|^await |#\w/m);
    expect(read("bootstrap.mjs")).not.toMatch(/from "node:/);
  });
});

// --- Vocabulary: a repository of one workspace and one dependency, and an npm that only writes down what it is asked --

let root = "";

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "atelier-bootstrap-"));
  copyFileSync(source, join(root, "bootstrap.mjs"));
  write("package.json", { name: "root", workspaces: ["packages/*"] });
  write("packages/one/package.json", { name: "one", dependencies: { left: "1.0.0" } });
  lock({ left: "1.0.0" });
  write("npm-cli.js", FAKE_NPM);
});

afterEach(() => rmSync(root, { recursive: true }));

function lock(versions: Record<string, string>): void {
  const installed = Object.entries(versions).map(([name, version]) => [`node_modules/${name}`, { version }]);
  write("package-lock.json", {
    packages: {
      "": {},
      "packages/one": { dependencies: { left: "1.0.0" } },
      "node_modules/for-another-platform": { version: "1.0.0", optional: true },
      ...Object.fromEntries(installed),
    },
  });
}

const FAKE_NPM = `
  const { appendFileSync, mkdirSync, rmSync, writeFileSync, readFileSync } = require("fs");
  const { FAKE_NPM, FAKE_NPM_MS, FAKE_NPM_SKIPS_NODE, ONNXRUNTIME_NODE_INSTALL, npm_config_workspace } = process.env;
  const flags = process.argv.slice(2, 5).join(" ");
  appendFileSync("npm-log", flags + " " + ONNXRUNTIME_NODE_INSTALL + " workspace=" + npm_config_workspace + "\\n");
  setTimeout(() => {
    if (FAKE_NPM) {
      console.error(FAKE_NPM);
      process.exit(1);
    }
    rmSync("node_modules", { recursive: true, force: true });
    const lock = JSON.parse(readFileSync("package-lock.json", "utf8"));
    delete lock.packages["node_modules/for-another-platform"];
    mkdirSync("node_modules/left", { recursive: true });
    mkdirSync("node_modules/node/bin", { recursive: true });
    mkdirSync("node_modules/.bin", { recursive: true });
    writeFileSync("node_modules/.bin/atelier", "");
    if (!FAKE_NPM_SKIPS_NODE) writeFileSync("node_modules/node/bin/node", "");
    writeFileSync("node_modules/.package-lock.json", JSON.stringify(lock));
  }, Number(FAKE_NPM_MS || 0));
`;

/** What a plain npm install leaves: the lock file as it is, in node_modules. */
function npmInstalled(): void {
  const { packages } = JSON.parse(read("package-lock.json"));
  delete packages["node_modules/for-another-platform"];
  write("node_modules/.package-lock.json", { packages });
}

const bootstrap = (env: Record<string, string> = {}) => begin(env).ended;

function begin(env: Record<string, string>) {
  const child: ChildProcess = spawn(process.execPath, ["bootstrap.mjs"], {
    cwd: root,
    env: {
      ...process.env,
      npm_execpath: join(root, "npm-cli.js"),
      npm_node_execpath: process.execPath,
      ...env,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const output = { stdout: "", stderr: "" };
  for (const name of ["stdout", "stderr"] as const) {
    child[name]!.on("data", (chunk) => {
      output[name] += chunk;
    });
  }
  const ended = new Promise<{ exitCode: number | null; stdout: string; stderr: string }>((resolve) => {
    child.once("close", (exitCode) => resolve({ exitCode, ...output }));
  });
  return { child, ended };
}

function installs(): string[] {
  return existsSync(join(root, "npm-log")) ? read("npm-log").trimEnd().split("\n") : [];
}

const read = (file: string) => readFileSync(join(root, file), "utf8");

function write(file: string, content: unknown): void {
  mkdirSync(dirname(join(root, file)), { recursive: true });
  writeFileSync(join(root, file), typeof content === "string" ? content : JSON.stringify(content));
}

async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await sleep(20);
}
