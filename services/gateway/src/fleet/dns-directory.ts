import { Resolver } from "node:dns/promises";
import { isIPv6 } from "node:net";
import type { Clock, Random } from "@atelier/core";
import type { Logger } from "@atelier/telemetry";
import type { WorkerDirectory } from "./worker-directory.ts";

/** A name whose addresses are workers: a headless service of Kubernetes, say. */
export interface DnsName {
  readonly host: string;
  readonly port: number;
}

/** What is asked of the resolver; `node:dns` has it. */
export interface AddressResolver {
  resolve4(host: string): Promise<string[]>;
  resolve6(host: string): Promise<string[]>;
}

export interface DnsDirectoryOptions {
  readonly name: DnsName;
  readonly clock: Clock;
  readonly random: Random;
  readonly log: Logger;
  readonly resolver?: AddressResolver;
}

/** A new worker is found within this time; CoreDNS keeps its answers for 5 s by default. */
const EVERY_MS = 5_000;
/** Gateways that started together do not go on asking together. */
const JITTER = 0.2;
const QUERY_TIMEOUT_MS = 2_000;

/**
 * The A and AAAA records of a name, asked for again every five seconds. A name that stops resolving keeps the list that
 * it had: a name server that is away takes no worker away, and workers that are gone are found out by their streams.
 *
 * Search domains are not applied, so the name must be whole: `workers.atelier.svc.cluster.local`.
 */
export function dnsDirectory(options: DnsDirectoryOptions): WorkerDirectory {
  const resolver = options.resolver ?? new Resolver({ timeout: QUERY_TIMEOUT_MS, tries: 2 });
  return { watch: (listener) => watchName({ ...options, resolver }, listener) };
}

function watchName(
  { name, clock, random, log, resolver }: DnsDirectoryOptions & { readonly resolver: AddressResolver },
  listener: (addresses: readonly string[]) => void,
): () => void {
  let known: readonly string[] | undefined;
  let failing = false;
  let over = false;
  let cancel = () => {};

  const ask = async () => {
    const addresses = await resolve(name, resolver).catch((error: unknown) => {
      if (!failing)
        log.warn({ name: name.host, err: error }, "the workers' name does not resolve; the last list stands");
      failing = true;
      return undefined;
    });
    if (over) return;
    if (addresses !== undefined) {
      if (failing) log.info({ name: name.host }, "the workers' name resolves again");
      failing = false;
      if (known === undefined || addresses.join() !== known.join()) {
        known = addresses;
        listener(addresses);
      }
    }
    cancel = clock.after(EVERY_MS * (1 + JITTER * (2 * random.next() - 1)), () => void ask());
  };
  listener([]); // nobody is known until the first answer
  void ask();
  return () => {
    over = true;
    cancel();
  };
}

/** Every address as host:port, in order. Rejects where there is none. */
async function resolve({ host, port }: DnsName, resolver: AddressResolver): Promise<readonly string[]> {
  const answers = await Promise.allSettled([resolver.resolve4(host), resolver.resolve6(host)]);
  const addresses = answers.flatMap((answer) => (answer.status === "fulfilled" ? answer.value : []));
  if (addresses.length === 0) throw failureOf(answers, host);
  return [...new Set(addresses)]
    .sort()
    .map((address) => (isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`));
}

/** Most names have addresses of one kind only: where both failed, it is not that the other kind has none. */
function failureOf(answers: readonly PromiseSettledResult<string[]>[], host: string): Error {
  const failures = answers.flatMap((answer) => (answer.status === "rejected" ? [answer.reason as Error] : []));
  return (
    failures.find((error) => !error.message.includes("ENODATA")) ?? failures[0] ?? new Error(`${host} has no address`)
  );
}
