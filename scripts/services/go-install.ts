import { existsSync } from "node:fs";
import { rename } from "node:fs/promises";
import { join } from "node:path";
import { cached, NotToBeHad } from "./cache-folder.ts";
import { unpackDebian } from "./debian-package.ts";
import { onPath, type Program } from "./programs.ts";
import { runProgram } from "./run-program.ts";

/**
 * `program` built by Go (from PATH, else Debian's) into the cache folder, from the Go module proxy. Static: it needs no
 * library of this machine.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function goInstall(wanted: { package: string; version: string; program: string }): Promise<Program> {
  const folder = await cached(`go-${wanted.program}-${wanted.version}-${process.arch}`, async (building) => {
    const go = onPath("go") ?? (await debianGo());
    const env = { ...go.env, CGO_ENABLED: "0", GOBIN: building, GOFLAGS: "" };
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

async function debianGo(): Promise<Program> {
  const { path } = await unpackDebian({ packageName: "golang-go", program: "go" });
  return { path, env: {} };
}
