import { onPath } from "./programs.ts";
import { runProgram } from "./run-program.ts";

/** How `docker run` is called for one server; podman takes the same words. */
export interface Container {
  readonly engine: string;
  readonly image: string;
}

/** A folder of this machine, and where it is in the container. */
export interface Volume {
  readonly from: string;
  readonly at: string;
}

/** `image` where a container engine runs and has it already; none is ever fetched. */
export async function containerWith(image: string): Promise<Container | undefined> {
  for (const name of ["docker", "podman"]) {
    const engine = onPath(name)?.path;
    if (engine === undefined) continue;
    const { code } = await runProgram(engine, ["image", "inspect", "--format", "{{.Id}}", image]);
    if (code === 0) return { engine, image };
  }
  return undefined;
}

/**
 * The command line that runs `args` in it and shows its `innerPort` at `host:port`. The engine passes SIGTERM on, and
 * the container goes with its process.
 */
export function containerCommand(
  { engine, image }: Container,
  { host, port, innerPort, args, volume }: ContainerOptions,
): readonly [string, ...string[]] {
  const mount = volume === undefined ? [] : ["--volume", `${volume.from}:${volume.at}`];
  return [engine, "run", "--rm", "--init", "--publish", `${host}:${port}:${innerPort}`, ...mount, image, ...args];
}

export interface ContainerOptions {
  readonly host: string;
  readonly port: number;
  readonly innerPort: number;
  readonly args: readonly string[];
  readonly volume?: Volume;
}
