import type { AddressInfo } from "node:net";
import { Server as TlsServer } from "node:tls";
import { ConfigError, invariant } from "@atelier/core";
import type { FastifyInstance } from "fastify";

export interface ListenOptions {
  readonly host: string;
  /** 0: a free one. */
  readonly port: number;
  /** The variable that said so, for messages. */
  readonly variable: string;
}

/**
 * Starts listening and returns the URL to reach it by, with the port that the system chose when 0 was asked for.
 *
 * @throws ConfigError saying what to change when the address cannot be had.
 */
export async function listen(app: Pick<FastifyInstance, "listen" | "server">, options: ListenOptions): Promise<string> {
  try {
    await app.listen({ host: options.host, port: options.port });
  } catch (error) {
    throw new ConfigError(whyNot(error as NodeJS.ErrnoException, options), { cause: error });
  }
  const address = app.server.address() as AddressInfo | null;
  invariant(address !== null, "a server that listens has an address");
  return urlOf(app.server instanceof TlsServer ? "https" : "http", address);
}

function whyNot({ code, message }: NodeJS.ErrnoException, { host, port, variable }: ListenOptions): string {
  if (code === "EADDRINUSE")
    return `port ${port} on ${host} is taken by another program; set ${variable} to another (port 0 takes a free one)`;
  if (code === "EACCES") return `port ${port} on ${host} needs privileges; set ${variable} to one above 1023`;
  if (code === "EADDRNOTAVAIL" || code === "ENOTFOUND")
    return `${variable} names ${host}, which is not an address of this machine`;
  return `cannot listen on ${host}:${port}: ${message}`;
}

/** An address that stands for all of the machine's is reached by loopback. */
function urlOf(scheme: "http" | "https", { address, port }: AddressInfo): string {
  if (address === "0.0.0.0") return `${scheme}://127.0.0.1:${port}`;
  if (address === "::") return `${scheme}://[::1]:${port}`;
  return address.includes(":") ? `${scheme}://[${address}]:${port}` : `${scheme}://${address}:${port}`;
}
