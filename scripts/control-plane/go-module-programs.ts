import { mkdir, rm, writeFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { cached, NotToBeHad } from "../services/cache-folder.ts";
import { findGo } from "../services/go-install.ts";
import type { Program } from "../services/programs.ts";
import { runProgram } from "../services/run-program.ts";

/** Programs of one Go module that `go install` refuses, since its go.mod replaces modules by folders of its own. */
export interface GoModulePrograms {
  /** Of the cache folder. */
  readonly name: string;
  readonly module: string;
  readonly version: string;
  /** What they are called, by package. */
  readonly programs: Readonly<Record<string, string>>;
  /** Of the modules that it replaces by folders: the version under which they were published. */
  readonly stagingVersion?: string;
  /** Those of them that were not, and that the programs do not need. */
  readonly unpublished?: readonly string[];
  readonly ldflags?: string;
}

/**
 * Builds them into the cache folder, once: a small module requires theirs and replaces its folders by what was published.
 * Several minutes and 3 GB of memory for Kubernetes; what the compiler keeps goes with the build.
 *
 * @throws NotToBeHad saying what was tried.
 */
export async function goModulePrograms(wanted: GoModulePrograms): Promise<Readonly<Record<string, Program>>> {
  const { name, version, programs } = wanted;
  const folder = await cached(`go-${name}-${version}-${process.arch}`, (building) => build(wanted, building));
  return Object.fromEntries(
    Object.values(programs).map((program) => [program, { path: join(folder, program), env: {} }]),
  );
}

async function build(wanted: GoModulePrograms, building: string): Promise<void> {
  const { name, module, version, programs, ldflags = "" } = wanted;
  const go = await findGo();
  const work = join(building, "module");
  const env = {
    ...{ CGO_ENABLED: "0", GOFLAGS: "-mod=mod", GOWORK: "off", GOTOOLCHAIN: "auto" },
    // Of its own: 10 GB that nothing else would ever use again.
    GOCACHE: join(building, "go-cache"),
  };
  const run = async (args: readonly string[]) => {
    const { code, stdout, stderr } = await runProgram(go, args, { cwd: work, env });
    if (code !== 0) throw new NotToBeHad(`${name} ${version}: go ${args.slice(0, 3).join(" ")}: ${stderr.slice(-800)}`);
    return stdout;
  };
  await mkdir(work, { recursive: true });
  await writeFile(join(work, "go.mod"), "module build\n");
  const { GoMod: goMod } = JSON.parse(await run(["mod", "download", "-json", `${module}@${version}`]));
  const replaced = JSON.parse(await run(["mod", "edit", "-json", goMod])) as {
    Go: string;
    Replace: { Old: { Path: string }; New: { Path: string; Version?: string } }[] | null;
  };
  const lines = [`module build`, `go ${replaced.Go}`, `require ${module} ${version}`];
  for (const { Old, New } of replaced.Replace ?? []) {
    if (New.Version !== undefined) lines.push(`replace ${Old.Path} => ${New.Path} ${New.Version}`);
    else if (wanted.unpublished?.includes(Old.Path)) {
      const empty = join(work, "unpublished", Old.Path);
      await mkdir(empty, { recursive: true });
      await writeFile(join(empty, "go.mod"), `module ${Old.Path}\n`);
      lines.push(`replace ${Old.Path} => ${empty}`);
    } else if (wanted.stagingVersion !== undefined)
      lines.push(`replace ${Old.Path} => ${Old.Path} ${wanted.stagingVersion}`);
  }
  await writeFile(join(work, "go.mod"), `${lines.join("\n")}\n`);
  // One after another, as few side by side as there are cores: the linker alone takes 2 GB.
  for (const [path, program] of Object.entries(programs)) {
    console.error(`building ${program} ${version}`);
    const jobs = String(availableParallelism());
    await run(["build", "-trimpath", "-p", jobs, "-ldflags", `-s -w ${ldflags}`, "-o", join(building, program), path]);
  }
  await rm(env.GOCACHE, { recursive: true, force: true });
  await rm(work, { recursive: true, force: true });
}
