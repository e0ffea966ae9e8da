import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";

export interface HostPort {
  readonly host: string;
  readonly port: number;
}

/** Why `host:port` cannot be listened on ("EADDRINUSE", "EACCES", ...), or undefined when it can. */
export async function portProblem({ host, port }: HostPort): Promise<string | undefined> {
  const server = createServer();
  try {
    server.listen({ host, port, exclusive: true });
    await once(server, "listening");
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  } finally {
    server.close();
  }
}

/** The first of the 20 ports after `port` that is free, or 0, which lets the system choose. */
export async function nextFreePort({ host, port }: HostPort): Promise<number> {
  for (let next = port + 1; next <= Math.min(port + 20, 65_535); next++) {
    if ((await portProblem({ host, port: next })) === undefined) return next;
  }
  return 0;
}

/** One that the system chooses, for a server whose address others must know before it starts. */
export async function freePort(host: string): Promise<number> {
  const server = createServer().listen({ host, port: 0, exclusive: true });
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
