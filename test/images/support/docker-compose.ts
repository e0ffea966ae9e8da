import { goModulePrograms } from "../../../scripts/control-plane/go-module-programs.ts";
import type { Program } from "../../../scripts/services/programs.ts";

/** The last that speaks the API of Debian 12's Docker: later ones ask for 1.44. */
const VERSION = "v2.40.3";

/** Docker Compose as a program of its own, built from its source once. @throws NotToBeHad saying what was tried. */
export async function dockerCompose(): Promise<Program> {
  const programs = await goModulePrograms({
    name: "docker-compose",
    module: "github.com/docker/compose/v2",
    version: VERSION,
    programs: { "github.com/docker/compose/v2/cmd": "docker-compose" },
    ldflags: `-X github.com/docker/compose/v2/internal.Version=${VERSION}`,
  });
  return programs["docker-compose"]!;
}
