/**
 * Makes an empty clone runnable: installs the packages when package-lock.json says something else than node_modules
 * holds. Runs before `npm start`, `npm test` and the `atelier` command; a second run does nothing.
 *
 * Plain JavaScript with built-in modules only, since nothing is installed yet; and without newer syntax (no `?.`, `??`,
 * top-level await, `node:` specifiers), so that a Node as old as 12 gets as far as the message that says it is too old.
 */
// biome-ignore-all lint/style/useNodejsImportProtocol: an old Node would stop at them, without our message
import { spawn } from "child_process";
import { createHash } from "crypto";
import fs from "fs";
import { basename, dirname, join } from "path";
import { fileURLToPath } from "url";

const ROOT = dirname(fileURLToPath(import.meta.url));
/** What runs npm and this file. Everything else runs on the Node that npm installs (devDependency `node`). */
const NODE_MAJOR_MIN = 20;
/** Measured: 0.8 GB in node_modules and 0.4 GB in npm's cache; and some room. */
const DISK_NEEDED_BYTES = 1.4e9;
const HEARTBEAT_MS = 1000;
/** A lock whose holder has not touched it for so long is taken over, even if its pid is alive: pids are used again. */
const LOCK_STALE_MS = 30000;
const WAIT_MAX_MS = 15 * 60000;
/** npm's output is kept for the message of a failure, its end only. */
const OUTPUT_KEPT_CHARS = 64 * 1024;

/** An expected failure: its message is all that the user needs to see. */
export class BootstrapError extends Error {
  constructor(message, exitCode) {
    super(message);
    this.name = "BootstrapError";
    this.exitCode = exitCode === undefined ? 1 : exitCode;
  }
}

/**
 * Installs what is missing under `root`. Two processes may call it at the same time: one installs, the other waits.
 * @throws BootstrapError with a message for the user.
 */
export async function bootstrap(root) {
  checkNodeVersion(process.versions.node);
  if (isStamped(root)) return;
  await withLock(root, async () => {
    if (isStamped(root)) return; // another process installed while we waited
    if (!isInstalled(root)) await install(root);
    fs.writeFileSync(stampFile(root), fingerprint(root));
  });
}

/** `bootstrap`, with its failures printed as the process's own. */
export async function bootstrapOrExit(root) {
  try {
    await bootstrap(root === undefined ? ROOT : root);
  } catch (error) {
    if (!(error instanceof BootstrapError)) throw error;
    console.error(error.message);
    process.exit(error.exitCode);
  }
}

/** @throws BootstrapError when `version` ("18.19.0") is too old to run npm and the launcher. */
export function checkNodeVersion(version) {
  if (Number(version.split(".")[0]) >= NODE_MAJOR_MIN) return;
  throw new BootstrapError(
    `Atelier needs Node ${NODE_MAJOR_MIN} or newer; this is Node ${version} (${process.execPath}).\n` +
      `Install a newer Node from https://nodejs.org, then run the command again.\n` +
      `Atelier 需要 Node ${NODE_MAJOR_MIN} 或更新版本，当前是 Node ${version}。`,
  );
}

// --- What is installed ---------------------------------------------------------------------------------------------

const stampFile = (root) => join(root, "node_modules", ".atelier-stamp");

function isStamped(root) {
  return readIfThere(stampFile(root)) === fingerprint(root);
}

/** One hash for everything that decides what npm would install here. */
export function fingerprint(root) {
  const hash = createHash("sha256").update(`${process.platform} ${process.arch}\n`);
  for (const file of ["package-lock.json"].concat(manifests(root).map((folder) => join(folder, "package.json")))) {
    const text = readIfThere(join(root, file));
    if (text === undefined) {
      throw new BootstrapError(`${file} is missing in ${root}. Restore it: git checkout -- ${file}`);
    }
    hash.update(`${file} ${text.length}\n${text}`);
  }
  return hash.digest("hex");
}

/** The folders with a package.json, relative to `root`: the root itself ("") and its workspaces. */
function manifests(root) {
  const { workspaces = [] } = readJson(join(root, "package.json"));
  const folders = workspaces.map((pattern) => {
    if (!pattern.endsWith("/*")) return [pattern];
    const parent = pattern.slice(0, -2);
    return namesIn(join(root, parent)).map((name) => join(parent, name));
  });
  const found = [].concat(...folders).filter((folder) => fs.existsSync(join(root, folder, "package.json")));
  return [""].concat(found.sort());
}

/**
 * True where npm itself has brought node_modules to what package-lock.json says: after a plain `npm install`, or a
 * change to package.json that touches no dependency. Reinstalling would only cost time, and pull node_modules away
 * from under whatever else is running.
 */
function isInstalled(root) {
  const wanted = readJson(join(root, "package-lock.json"));
  const present = readJson(join(root, "node_modules", ".package-lock.json"));
  if (!wanted || !present || ![installedNode(root), installedCommand(root)].every(fs.existsSync)) return false;
  for (const folder of manifests(root)) {
    if (!sameDependencies(readJson(join(root, folder, "package.json")), wanted.packages[folder] || {})) return false;
  }
  return Object.keys(wanted.packages).every((name) => {
    if (name === "") return true;
    const there = present.packages[name];
    const want = wanted.packages[name];
    if (there === undefined) return want.optional === true; // built for other platforms
    return there.version === want.version && there.integrity === want.integrity && fs.existsSync(join(root, name));
  });
}

function sameDependencies(manifest, locked) {
  return ["dependencies", "devDependencies", "optionalDependencies"].every((kind) => {
    const one = manifest[kind] || {};
    const other = locked[kind] || {};
    const names = Object.keys(one);
    return names.length === Object.keys(other).length && names.every((name) => one[name] === other[name]);
  });
}

const installedNode = (root) =>
  join(root, "node_modules", "node", "bin", process.platform === "win32" ? "node.exe" : "node");
const installedCommand = (root) => join(root, "node_modules", ".bin", "atelier");

// --- Installing ----------------------------------------------------------------------------------------------------

async function install(root) {
  const modules = join(root, "node_modules");
  // npm ci first deletes what is there, so only an empty clone can be told beforehand.
  if (!fs.existsSync(modules)) checkDisk(freeBytes(root), root);
  removeIfThere(stampFile(root));

  const startedMs = Date.now();
  process.stderr.write("Installing packages (once, about 30 s) ...");
  const dots = setInterval(() => process.stderr.write("."), 5000);
  const { code, signal, output } = await runNpm(root).finally(() => clearInterval(dots));
  if (signal) {
    process.stderr.write(" interrupted.\n");
    throw new BootstrapError("The packages are not all installed; the next run installs them again.", 130);
  }
  if (code !== 0) {
    process.stderr.write(" failed.\n");
    throw new BootstrapError(explainFailure(output, root, freeBytes(root)));
  }
  if (!fs.existsSync(installedNode(root))) {
    process.stderr.write(" failed.\n");
    throw new BootstrapError(
      `npm installed the packages, but not the Node that Atelier runs on (${installedNode(root)}).\n` +
        `Its install script did not run: is "ignore-scripts" set? See: npm config get ignore-scripts\n` +
        `npm 没有运行安装脚本，请检查 ignore-scripts 设置。`,
    );
  }
  process.stderr.write(` done in ${Math.round((Date.now() - startedMs) / 1000)} s.\n`);
}

/** Runs `npm ci`; Ctrl-C and SIGTERM go on to it, so that the lock is released in order. */
function runNpm(root) {
  const env = Object.assign({}, process.env, {
    // Its script would fetch CUDA libraries; the CPU ones are in the package.
    ONNXRUNTIME_NODE_INSTALL: "skip",
  });
  // `npm start -w one` would otherwise install the packages of that workspace only.
  delete env.npm_config_workspace;
  delete env.npm_config_workspaces;
  const { command, args } = npmCommand(env);
  // NODE_ENV=production leaves development dependencies out, and Node 24 is one.
  const flags = ["ci", "--include=dev", "--include=optional", "--no-audit", "--no-fund", "--loglevel=error"];

  return new Promise((resolve, reject) => {
    const windows = process.platform === "win32";
    const child = spawn(command, args.concat(flags), {
      cwd: root,
      env,
      stdio: ["ignore", "pipe", "pipe"],
      shell: windows,
    });
    let output = "";
    let signal = null;
    const keep = (chunk) => {
      output = (output + chunk).slice(-OUTPUT_KEPT_CHARS);
    };
    const pass = (name) => {
      signal = name;
      child.kill(name);
    };
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    process.on("SIGINT", pass).on("SIGTERM", pass);
    const settle = () => process.removeListener("SIGINT", pass).removeListener("SIGTERM", pass);
    child.on("error", (error) => {
      settle();
      if (error.code !== "ENOENT") return reject(error);
      reject(new BootstrapError(`npm was not found (${command}). Install Node with npm: https://nodejs.org`));
    });
    child.on("close", (code, killed) => {
      settle();
      resolve({ code, signal: signal || killed, output });
    });
  });
}

/** The npm that runs us, on the Node that it runs on, when one does; otherwise the one on PATH. */
function npmCommand(env) {
  const script = env.npm_execpath || "";
  if (!/^np[mx]-cli\.c?js$/.test(basename(script))) return { command: "npm", args: [] };
  const npm = join(dirname(script), basename(script).replace("npx", "npm"));
  // Not process.execPath: that may be the Node in node_modules, which npm ci is about to delete.
  return { command: env.npm_node_execpath || process.execPath, args: [npm] };
}

// --- Failures in words ---------------------------------------------------------------------------------------------

/** @throws BootstrapError when `free` bytes (undefined: unknown) cannot hold the packages. */
export function checkDisk(free, root) {
  if (free === undefined || free >= DISK_NEEDED_BYTES) return;
  throw new BootstrapError(
    `The disk of ${root} is too full to install the packages: ${gigabytes(free)} GB are free, and about ` +
      `${gigabytes(DISK_NEEDED_BYTES)} GB are needed, npm's cache included.\n磁盘空间不足。`,
  );
}

const gigabytes = (bytes) => (bytes / 1e9).toFixed(1);

/** Most telling first: a full disk, say, also makes npm print other codes. */
const MEANINGS = [
  [
    /ENOSPC|no space left/i,
    (root, free) =>
      `The disk was full, at ${root}${free === undefined ? "" : ` (${gigabytes(free)} GB free now)`} or at npm's cache ` +
      `(npm config get cache). Both together need about ${gigabytes(DISK_NEEDED_BYTES)} GB.\n磁盘空间不足。`,
  ],
  [
    /EACCES|EPERM|EROFS/,
    (root) => `npm may not write to ${root} or to its own cache: check who owns them.\n没有写入权限。`,
  ],
  [
    /EUSAGE/,
    () =>
      "package.json and package-lock.json disagree. If you changed a dependency, run: npm install\n依赖清单不一致。",
  ],
  [
    /SELF_SIGNED|UNABLE_TO_GET_ISSUER|UNABLE_TO_VERIFY|CERT_/,
    () =>
      "npm does not trust the certificate of its registry. Behind a company proxy, let NODE_EXTRA_CA_CERTS name the " +
      "proxy's certificate file.\nnpm 不信任源的证书。",
  ],
  [
    /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET|E50\d/,
    () =>
      "npm could not reach its package registry: check the network, the proxy, and: npm config get registry\n" +
      "无法连接 npm 源，请检查网络或代理。",
  ],
  [
    /ETARGET|E404/,
    () =>
      "npm's registry lacks a version that package-lock.json names; a mirror may lag behind: npm config get registry\n" +
      "npm 源缺少所需版本。",
  ],
  [/(?:)/, () => "npm could not install the packages.\n安装依赖包失败。"],
];

/** What npm's output means to someone who does not know npm, with the telling lines of that output below it. */
export function explainFailure(output, root, free) {
  const [, meaning] = MEANINGS.find(([pattern]) => pattern.test(output));
  const lines = output.trim().split("\n");
  const errors = lines.filter((line) => /^npm (error|ERR!)/.test(line)); // the cause comes first, help at the end
  const telling = errors.length > 0 ? errors.slice(0, 10) : lines.slice(-10);
  return `${meaning(root, free)}\n\nnpm said:\n${telling.join("\n")}`;
}

/** Bytes free to us in the file system of `folder`; undefined where it cannot be known. */
function freeBytes(folder) {
  if (typeof fs.statfsSync !== "function") return undefined;
  const { bavail, bsize } = fs.statfsSync(folder);
  return bavail * bsize;
}

// --- One at a time -------------------------------------------------------------------------------------------------

/** Runs `run` while no other process does, for this `root`. Not in node_modules, which npm ci deletes. */
async function withLock(root, run) {
  const folder = join(root, ".atelier");
  const file = join(folder, "install.lock");
  try {
    fs.mkdirSync(folder, { recursive: true });
    await acquire(file);
  } catch (error) {
    if (["EACCES", "EPERM", "EROFS"].includes(error.code)) {
      throw new BootstrapError(
        `The packages are not installed yet, and ${root} may not be written to (${error.code}).\n没有写入权限：${root}`,
      );
    }
    if (error.code === "ENOSPC") throw new BootstrapError(explainFailure("ENOSPC", root, freeBytes(root)));
    throw error;
  }
  const heartbeat = setInterval(() => fs.utimesSync(file, new Date(), new Date()), HEARTBEAT_MS);
  try {
    await run();
  } finally {
    clearInterval(heartbeat);
    removeIfThere(file);
  }
}

async function acquire(file) {
  const untilMs = Date.now() + WAIT_MAX_MS;
  let told = false;
  while (!createIfAbsent(file)) {
    const holder = readIfThere(file);
    if (holder === undefined) continue; // just released
    if (isStale(file, holder)) {
      takeOver(file);
      continue;
    }
    if (!told) process.stderr.write(`Another process (pid ${holder.trim()}) installs the packages; waiting ...\n`);
    told = true;
    if (Date.now() > untilMs) {
      throw new BootstrapError(
        `Process ${holder.trim()} still installs packages after 15 minutes. If it hangs, end it.`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function createIfAbsent(file) {
  try {
    fs.writeFileSync(file, `${process.pid}\n`, { flag: "wx" });
    return true;
  } catch (error) {
    if (error.code === "EEXIST") return false;
    throw error;
  }
}

function isStale(file, holder) {
  let ageMs = 0;
  try {
    ageMs = Date.now() - fs.statSync(file).mtimeMs;
  } catch (error) {
    if (error.code === "ENOENT") return false;
    throw error;
  }
  if (ageMs > LOCK_STALE_MS) return true;
  // The pid is written just after the file is made: an empty file is a young lock.
  return holder.trim() !== "" && !isAlive(Number(holder));
}

/**
 * Removes a stale lock. A second lock guards the removal: without it, of two processes that find the same stale lock,
 * the slower one could remove the faster one's new lock.
 */
function takeOver(file) {
  const guard = `${file}.takeover`;
  if (!createIfAbsent(guard)) {
    const holder = readIfThere(guard);
    if (holder !== undefined && isStale(guard, holder)) removeIfThere(guard);
    return;
  }
  try {
    const holder = readIfThere(file);
    if (holder !== undefined && isStale(file, holder)) removeIfThere(file);
  } finally {
    removeIfThere(guard);
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === "EPERM"; // alive, and another user's
  }
}

// --- Files ---------------------------------------------------------------------------------------------------------

function readIfThere(file) {
  try {
    return fs.readFileSync(file, "utf8");
  } catch (error) {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return undefined;
    throw error;
  }
}

function readJson(file) {
  const text = readIfThere(file);
  return text === undefined ? undefined : JSON.parse(text);
}

function namesIn(folder) {
  return fs.existsSync(folder) ? fs.readdirSync(folder) : [];
}

function removeIfThere(file) {
  try {
    fs.unlinkSync(file);
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
}

if (process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) bootstrapOrExit();
