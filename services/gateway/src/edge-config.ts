import { isLoopback } from "@atelier/http";
import type { TlsFileNames } from "@atelier/rpc";
import { z } from "zod";

export interface WorkerTlsConfig extends TlsFileNames {
  /** What workers' certificates are made out to; undefined: to their addresses. */
  readonly serverName: string | undefined;
}

type TlsVariable = `ATELIER_${"TLS" | "WORKER"}_${"CERT" | "KEY"}` | "ATELIER_WORKER_CA" | "ATELIER_WORKER_TLS_NAME";
type TlsVariables = { readonly [variable in TlsVariable]?: string | undefined };

export function tlsFiles(
  read: TlsVariables,
  variables: { readonly cert: TlsVariable; readonly key: TlsVariable; readonly ca?: TlsVariable },
): TlsFileNames | undefined {
  const named = (variable: TlsVariable) => ({ variable, file: read[variable] ?? "" }); // checkTlsFiles has seen to it
  if (read[variables.cert] === undefined) return undefined;
  const { cert, key, ca } = variables;
  return { cert: named(cert), key: named(key), ...(ca && { ca: named(ca) }) };
}

export function workerTls(read: TlsVariables): WorkerTlsConfig | undefined {
  const files = tlsFiles(read, { ca: "ATELIER_WORKER_CA", cert: "ATELIER_WORKER_CERT", key: "ATELIER_WORKER_KEY" });
  return files && { ...files, serverName: read.ATELIER_WORKER_TLS_NAME };
}

/** Certificates are of use all together, or not at all: half of them would be taken for security. */
export function checkTlsFiles(read: TlsVariables, context: z.RefinementCtx): void {
  const groups: readonly (readonly TlsVariable[])[] = [
    ["ATELIER_TLS_CERT", "ATELIER_TLS_KEY"],
    ["ATELIER_WORKER_CA", "ATELIER_WORKER_CERT", "ATELIER_WORKER_KEY"],
  ];
  for (const group of groups) {
    const given = group.filter((variable) => read[variable] !== undefined);
    if (given.length === 0) continue;
    for (const variable of group) {
      if (read[variable] !== undefined) continue;
      context.addIssue({ code: "custom", path: [variable], message: `is needed beside ${given.join(" and ")}` });
    }
  }
  if (read.ATELIER_WORKER_TLS_NAME !== undefined && read.ATELIER_WORKER_CERT === undefined) {
    const message = "is for TLS to workers: it needs ATELIER_WORKER_CA, ATELIER_WORKER_CERT and ATELIER_WORKER_KEY";
    context.addIssue({ code: "custom", path: ["ATELIER_WORKER_TLS_NAME"], message });
  }
}

export function checkOrigins(origins: readonly string[], context: z.RefinementCtx): void {
  for (const origin of origins) {
    if (origin === "*" || URL.parse(origin)?.origin === origin) continue;
    const message = `${JSON.stringify(origin)} is not an origin such as https://shop.example (scheme and host, nothing after), nor *`;
    context.addIssue({ code: "custom", message });
  }
}

/** http://host:port, or https; a path would be put before every other. */
export function serviceUrl(text: string, context: z.RefinementCtx): string {
  const url = URL.parse(text);
  if (url !== null && /^https?:$/.test(url.protocol) && url.origin === text.replace(/\/$/, "")) return url.origin;
  context.addIssue({
    code: "custom",
    message: "must be a URL such as http://127.0.0.1:8090, with nothing after its port",
  });
  return z.NEVER;
}

/** Without a token anybody on the way between two machines could say who asks. */
export function checkJobs(
  {
    ATELIER_JOBS: jobs,
    ATELIER_INTERNAL_TOKEN: token,
  }: { ATELIER_JOBS?: string | undefined; ATELIER_INTERNAL_TOKEN?: string | undefined },
  context: z.RefinementCtx,
): void {
  if (jobs === undefined || token !== undefined || isLoopback(new URL(jobs).hostname)) return;
  const message = "is not on this machine's loopback, so that ATELIER_INTERNAL_TOKEN is needed beside it";
  context.addIssue({ code: "custom", path: ["ATELIER_JOBS"], message });
}
