import { existsSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { cached, NotToBeHad } from "./cache-folder.ts";
import { onPath, type Program } from "./programs.ts";
import { runProgram } from "./run-program.ts";

/**
 * `program` built by the Go on PATH into the cache folder, from the Go module proxy. Static: it needs no library of this
 * machine. Debian's own Go is not brought: it is older than what the programs ask for.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function goInstall(wanted: { package: string; version: string; program: string }): Promise<Program> {
  const folder = await cached(`go-${wanted.program}-${wanted.version}-${process.arch}`, async (building) => {
    const go = onPath("go");
    if (go === undefined) throw new NotToBeHad(`${wanted.program} and Go are not on PATH; Go 1.21 or newer builds it`);
    const env = { CGO_ENABLED: "0", GOBIN: building, GOFLAGS: "" };
    const { code, stderr } = await runProgram(go.path, ["install", `${wanted.package}@${wanted.version}`], { env });
    if (code !== 0) throw new NotToBeHad(`go install ${wanted.package}: ${stderr.trim().slice(-500)}`);
    // Go names a program for the last part of its package.
    const built = join(
      building,
      wanted.package
        .replace(/\/v\d+$/, "")
        .split("/")
        .at(-1)!,
    );
    if (existsSync(built)) await rename(built, join(building, wanted.program));
  });
  return { path: join(folder, wanted.program), env: {} };
}
