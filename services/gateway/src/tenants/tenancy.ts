import { ConfigError } from "@atelier/core";
import { isLoopback } from "@atelier/http";
import type { Registry } from "@atelier/telemetry";
import type { GatewayWorld } from "../build-gateway.ts";
import type { Caller } from "../caller.ts";
import type { GatewayConfig } from "../config.ts";
import type { CompleteRequest } from "../image-request.ts";
import type { RedisLink } from "../shared/redis-link.ts";
import type { Accounts, LimitName } from "./accounts.ts";
import { KeyAdmin } from "./admin.ts";
import { openDatabase } from "./database.ts";
import { TenantDirectory } from "./directory.ts";
import { EmbeddedAccounts } from "./embedded-accounts.ts";
import { KeyAuthenticator } from "./key-authenticator.ts";
import type { KeyStore } from "./key-store.ts";
import { redisKeyStore } from "./key-store-redis.ts";
import { sqliteKeyStore } from "./key-store-sqlite.ts";
import { RedisAccounts } from "./redis-accounts.ts";
import { SqliteUsage } from "./sqlite-usage.ts";
import { environmentKeys, keysFile } from "./static-keys.ts";
import type { Tariff } from "./tariff.ts";
import { TenantGate } from "./tenant-gate.ts";
import { createTenantMetrics } from "./tenant-metrics.ts";

/** Who may use this gateway, how much of it, and what they did: all parts of it together. */
export interface Tenancy {
  readonly directory: TenantDirectory;
  readonly authenticator: KeyAuthenticator;
  readonly gate: TenantGate;
  readonly admin: KeyAdmin;
  readonly accounts: Accounts;
  readonly tariff: Tariff;
  /** Says in the log who may come, once the gateway listens. */
  announce(): void;
  close(): Promise<void>;
}

export interface TenancyOptions extends Pick<GatewayWorld, "clock" | "log"> {
  readonly config: Pick<GatewayConfig, "listen" | "grpcListen" | "tenancy">;
  /** Device milliseconds that a request would take; 0 where nobody knows. */
  readonly predictMs: (asked: CompleteRequest, caller: Caller) => number;
  /** Undefined: this gateway shares with no other. */
  readonly redis: RedisLink | undefined;
  readonly registry: Registry;
}

/** @throws ConfigError where keys cannot be read, or none is known and callers from elsewhere could come. */
export async function openTenancy(options: TenancyOptions): Promise<Tenancy> {
  const { config, clock, log, predictMs, registry } = options;
  const { keysFile: file, keys, tariff, anonymousAllowed } = config.tenancy;
  const { store, accounts, close } = openState(options);
  const configured = [
    ...(file === undefined ? [] : [keysFile(file)]),
    ...(keys === undefined ? [] : [environmentKeys(keys)]),
  ];
  const exposed = exposedBy(config);
  const outside = exposed !== undefined;
  const anonymous = anonymousOf({ outside, anonymousAllowed });
  const directory = new TenantDirectory({ clock, log, configured, store, anonymous });
  try {
    await directory.start();
    if (exposed !== undefined && !anonymousAllowed && directory.complete && !directory.keysKnown) {
      throw new ConfigError(openToAll(exposed));
    }
  } catch (error) {
    await directory.close();
    close();
    throw error;
  }
  const metrics = createTenantMetrics(registry, {
    directory,
    unbooked: () => accounts.unbooked,
    currency: tariff.currency,
  });
  const onRefusal = (limit: LimitName) => metrics.refusals.inc({ limit });
  const authenticator = new KeyAuthenticator({ directory, clock });
  const onUsed = metrics.used;
  const gate = new TenantGate({ directory, authenticator, accounts, tariff, predictMs, clock, onRefusal, onUsed });
  return {
    directory,
    authenticator,
    gate,
    admin: new KeyAdmin({ directory, store, clock, log }),
    accounts,
    tariff,
    announce: () => {
      if (directory.keysRequired) return;
      if (outside) log.warn({ ...exposed }, "no key is asked of callers, as ATELIER_ANONYMOUS=allow says");
      else log.info("no keys are configured: open to this machine's loopback only");
    },
    close: async () => {
      gate.close();
      await directory.close();
      await accounts.close();
      close();
    },
  };
}

interface TenancyState {
  readonly store: KeyStore;
  readonly accounts: Accounts;
  close(): void;
}

/** What is kept: in Redis, for all gateways, or in a database of this one's own. */
function openState({ config, clock, log, redis }: TenancyOptions): TenancyState {
  if (redis !== undefined) {
    const accounts = new RedisAccounts({ link: redis, clock, log });
    return { store: redisKeyStore(redis, log), accounts, close: () => {} };
  }
  const database = openDatabase(config.tenancy.dataDir);
  const accounts = new EmbeddedAccounts({ clock, log, book: new SqliteUsage(database) });
  return { store: sqliteKeyStore(database, log), accounts, close: () => database.close() };
}

function anonymousOf({ outside, anonymousAllowed }: { outside: boolean; anonymousAllowed: boolean }) {
  if (!outside) return "all" as const;
  return anonymousAllowed ? ("pictures" as const) : ("nothing" as const);
}

interface Exposed {
  readonly variable: string;
  readonly host: string;
}

/** The address that others than this machine can reach; undefined where there is none. */
function exposedBy({ listen, grpcListen }: TenancyOptions["config"]): Exposed | undefined {
  const addresses = [
    { variable: "ATELIER_LISTEN", host: listen.host },
    ...(grpcListen === undefined ? [] : [{ variable: "ATELIER_GRPC_LISTEN", host: grpcListen.host }]),
  ];
  return addresses.find(({ host }) => !isLoopback(host));
}

function openToAll({ variable, host }: Exposed): string {
  return [
    `${variable} names ${host}, which others can reach, and there is no API key:`,
    "  set ATELIER_KEYS_FILE (or ATELIER_KEYS) to keys that `atelier keys create --offline` makes,",
    `  or ${variable} to an address of loopback such as 127.0.0.1:8080,`,
    "  or ATELIER_ANONYMOUS=allow where a proxy of your own asks callers who they are",
  ].join("\n");
}
