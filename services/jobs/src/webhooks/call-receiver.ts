import { type LookupAddress, lookup as systemLookup } from "node:dns";
import type { LookupFunction } from "node:net";
import { Agent, type Dispatcher } from "undici";
import { whyPrivateAddress, whyPrivateHost } from "./hook-url.ts";
import type { CallOutcome } from "./retry-schedule.ts";

/** One attempt, as the delivery log shows it. */
export interface Attempt {
  readonly atMs: number;
  readonly latencyMs: number;
  /** Of the answer; null where none came. */
  readonly status: number | null;
  /** Why it does not count; null where it does. */
  readonly error: string | null;
  /** How the answer began. */
  readonly excerpt: string;
}

export interface CallResult {
  readonly outcome: CallOutcome;
  readonly status: number | null;
  readonly error: string | null;
  readonly excerpt: string;
}

/** One POST to somebody else's server. Resolves whatever that does. */
export type CallReceiver = (call: {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: string;
}) => Promise<CallResult>;

/** All addresses of a name, as `dns.lookup` gives them. */
export type ResolveName = (
  hostname: string,
  done: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void;

export interface ReceiverOptions {
  /** Addresses that are not public may be called. */
  readonly privateAllowed: boolean;
  /** From the first packet to the end of what is read of the answer. */
  readonly timeoutMs?: number;
  readonly resolve?: ResolveName;
  /** Why an address is not to be connected to, where `privateAllowed` does not say that all are. */
  readonly whyRefused?: (address: string) => string | undefined;
}

/** A receiver has to take note, not to work; 10 s is what other senders of webhooks give. */
const TIMEOUT_MS = 10_000;
const EXCERPT_BYTES_MAX = 1_024;

/**
 * Calls receivers. The address that a connection is opened to is the one that was checked: names are resolved once, here,
 * so that a name server which answers differently the second time gains nothing. No redirect is followed and no proxy of
 * the environment is used.
 */
export function openReceivers({
  privateAllowed,
  timeoutMs = TIMEOUT_MS,
  resolve = allAddresses,
  whyRefused = whyPrivateAddress,
}: ReceiverOptions): { readonly call: CallReceiver; close(): Promise<void> } {
  const agent = new Agent({
    connect: { lookup: lookupBy(resolve, privateAllowed ? () => undefined : whyRefused), timeout: timeoutMs },
    pipelining: 1,
    keepAliveTimeout: 5_000, // most are called once in a while: a connection for later is mostly kept for nothing
    allowH2: false,
  });
  const call: CallReceiver = async ({ url, headers, body }) => {
    const { origin, pathname, search, hostname } = new URL(url);
    // An address is connected to without being looked up.
    const why = privateAllowed ? undefined : whyPrivateHost(hostname);
    if (why !== undefined) return failed(`${hostname} ${why}; only public addresses are called`);
    try {
      const reply = await agent.request({
        origin,
        path: `${pathname}${search}`,
        method: "POST",
        headers: { ...headers, "content-type": "application/json", "user-agent": "Atelier-Webhooks/1" },
        body,
        signal: AbortSignal.timeout(timeoutMs),
      });
      return judge(reply, await excerptOf(reply.body));
    } catch (error) {
      return failed(reasonOf(error, timeoutMs));
    }
  };
  return { call, close: () => agent.destroy() };
}

function judge({ statusCode: status, headers }: Dispatcher.ResponseData, excerpt: string): CallResult {
  if (status >= 200 && status < 300) return { outcome: { kind: "delivered" }, status, error: null, excerpt };
  if (status === 410) return { outcome: { kind: "gone" }, status, error: "it wants no more calls", excerpt };
  const error = status >= 300 && status < 400 ? "redirects are not followed" : `it answered ${status}`;
  const seconds = Number(headers["retry-after"] ?? Number.NaN); // its other form, a date, is rare
  const retryAfterMs = seconds >= 0 ? seconds * 1_000 : undefined;
  return { outcome: { kind: "failed", retryAfterMs }, status, error, excerpt };
}

const failed = (error: string): CallResult => ({ outcome: { kind: "failed" }, status: null, error, excerpt: "" });

/** Reads no more than it keeps; the connection is dropped with the rest. */
async function excerptOf(body: AsyncIterable<Buffer>): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes >= EXCERPT_BYTES_MAX) break;
  }
  const text = Buffer.concat(chunks).toString("utf8", 0, Math.min(bytes, EXCERPT_BYTES_MAX));
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is taken out, of what strangers sent
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, "\ufffd");
}

/** `dns.lookup` as sockets call it, with the check between the answer and the connection. */
function lookupBy(resolve: ResolveName, whyRefused: (address: string) => string | undefined): LookupFunction {
  return (hostname, options, callback) => {
    resolve(hostname, (error, found) => {
      const failure = error ?? refusal(hostname, found, whyRefused);
      if (failure !== undefined) return callback(failure, options.all ? [] : "", 0);
      if (options.all) return callback(null, found);
      const [first] = found;
      callback(null, first?.address ?? "", first?.family ?? 4);
    });
  };
}

/** All of them must be public: with one that is not, whoever set the name up decides which we would connect to. */
function refusal(name: string, found: readonly LookupAddress[], whyRefused: (address: string) => string | undefined) {
  for (const { address } of found) {
    const why = whyRefused(address);
    if (why !== undefined) return new Error(`${name} is ${address}, which ${why}; only public addresses are called`);
  }
  return undefined;
}

const allAddresses: ResolveName = (hostname, done) => systemLookup(hostname, { all: true }, done);

function reasonOf(error: unknown, timeoutMs: number): string {
  const { name, message, cause } = error as Error;
  if (name === "TimeoutError" || name === "ConnectTimeoutError")
    return `it did not answer within ${timeoutMs / 1_000} s`;
  if (error instanceof AggregateError && error.errors.length > 0) return (error.errors[0] as Error).message;
  return cause instanceof Error ? cause.message : message;
}
