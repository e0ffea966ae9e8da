import { existsSync } from "node:fs";
import { readFile, rename, writeFile } from "node:fs/promises";
import { hashApiKey, newApiKey } from "@atelier/core";
import { CliError } from "../cli-error.ts";
import { GatewayClient, type Server } from "../client/gateway-client.ts";
import { bold } from "../terminal/style.ts";
import { type Column, table } from "../terminal/table.ts";

/** What a new key is to be; what is absent is the gateway's default. */
export interface NewKey {
  readonly name: string;
  readonly tenant?: string;
  readonly role?: string;
  readonly scopes?: readonly string[];
  readonly priority?: string;
  readonly models?: readonly string[];
  readonly adapters?: readonly string[];
  readonly expires_at?: string;
}

interface KeyEntry {
  readonly id: string;
  readonly name: string;
  readonly tenant: string;
  readonly role: string;
  readonly scopes: readonly string[];
  readonly priority: string;
  readonly expires_at: string | null;
  readonly last_used_at: string | null;
  readonly previous_until: string | null;
  readonly source: string;
}

type IssuedKey = KeyEntry & { readonly key: string };

/** Makes a key at a running system and prints it. @throws CliError with the server's words. */
export async function createKey({ server, key, json }: { server: Server; key: NewKey; json: boolean }): Promise<void> {
  const issued = (await client(server).call("POST", "/v1/admin/keys", key)) as IssuedKey;
  console.log(json ? JSON.stringify(issued, undefined, 2) : told(issued.key));
}

/**
 * Makes a key without a system, for the first admin: prints it with the entry for the keys file, or adds that to `file`.
 * @throws CliError where the file cannot be read or written.
 */
export async function createKeyOffline({ key, file }: { key: NewKey; file: string | undefined }): Promise<void> {
  const made = newApiKey();
  const record = { id: made.id, hash: hashApiKey(made), ...key, created_at: new Date().toISOString() };
  if (file === undefined) {
    const entry = JSON.stringify({ keys: [record] });
    console.log(`${told(made.text)}\n\nFor the file that ATELIER_KEYS_FILE names · 写入密钥文件:\n${entry}`);
    return;
  }
  await addToFile(file, record);
  console.log(`${told(made.text)}\n\nAdded to ${file}; start the gateway with ATELIER_KEYS_FILE=${file}`);
}

export async function listKeys({ server, json }: { server: Server; json: boolean }): Promise<void> {
  const { keys } = (await client(server).call("GET", "/v1/admin/keys")) as { keys: readonly KeyEntry[] };
  if (json) console.log(JSON.stringify(keys, undefined, 2));
  else console.log(keys.length === 0 ? "There are no keys · 没有密钥" : table(COLUMNS, keys));
}

export interface RotateOptions {
  readonly server: Server;
  readonly id: string;
  readonly graceSeconds: number | undefined;
  readonly json: boolean;
}

export async function rotateKey({ server, id, graceSeconds, json }: RotateOptions): Promise<void> {
  const body = graceSeconds === undefined ? {} : { grace_seconds: graceSeconds };
  const path = `/v1/admin/keys/${encodeURIComponent(id)}/rotate`;
  const issued = (await client(server).call("POST", path, body)) as IssuedKey;
  const until = issued.previous_until;
  const before = until === null ? "The secret before has ended." : `The secret before is good until ${until}.`;
  console.log(json ? JSON.stringify(issued, undefined, 2) : `${told(issued.key)}\n${before}`);
}

export async function revokeKey({ server, id }: { server: Server; id: string }): Promise<void> {
  await client(server).call("DELETE", `/v1/admin/keys/${encodeURIComponent(id)}`);
  console.log(`Key ${id} is revoked · 已吊销`);
}

const COLUMNS: readonly Column<KeyEntry>[] = [
  { title: "ID", of: ({ id }) => id },
  { title: "NAME", of: ({ name }) => name },
  { title: "TENANT", of: ({ tenant }) => tenant },
  { title: "ROLE", of: ({ role }) => role },
  { title: "SCOPES", of: ({ scopes }) => scopes.join(",") },
  { title: "PRIORITY", of: ({ priority }) => priority },
  { title: "EXPIRES", of: ({ expires_at: at }) => at ?? "never" },
  { title: "LAST USED", of: ({ last_used_at: at }) => at ?? "-" },
  { title: "FROM", of: ({ source }) => source },
];

const client = (server: Server) => new GatewayClient(server, new AbortController().signal);

function told(key: string): string {
  return `${bold(key)}\n\nKeep it now: it is shown this once · 请立即保存，密钥只显示一次`;
}

async function addToFile(file: string, record: object): Promise<void> {
  try {
    const known: unknown = existsSync(file) ? JSON.parse(await readFile(file, "utf8")) : { keys: [] };
    const holdings = (Array.isArray(known) ? { keys: known } : known) as { keys?: unknown };
    const keys = holdings.keys ?? [];
    if (!Array.isArray(keys)) throw new Error('it has no list "keys"');
    const text = `${JSON.stringify({ ...holdings, keys: [...keys, record] }, undefined, 2)}\n`;
    // A gateway that reads it at this moment finds the one or the other whole.
    await writeFile(`${file}.new`, text, { mode: 0o600 });
    await rename(`${file}.new`, file);
  } catch (error) {
    throw new CliError(`${file} cannot take the key: ${(error as Error).message}`, { cause: error });
  }
}
