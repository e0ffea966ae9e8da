import { type Clock, hashApiKey, readApiKey, ServingError, sameHash } from "@atelier/core";
import { type Caller, LOCAL_CALLER, ROLES, type Role } from "../caller.ts";
import type { Authenticator } from "../http/authentication.ts";
import { type Headers, readCredential } from "./credentials.ts";
import type { KnownKey, TenantDirectory } from "./directory.ts";
import type { KeyRecord, Scope } from "./records.ts";

/** Keys come from a store that was not read yet: about when it is worth another try. */
const STORE_RETRY_MS = 2_000;

/** Knows callers by their keys; where no key is known or configured, everybody is the local caller. */
export class KeyAuthenticator implements Authenticator {
  readonly #directory: TenantDirectory;
  readonly #clock: Clock;

  constructor({ directory, clock }: { directory: TenantDirectory; clock: Clock }) {
    this.#directory = directory;
    this.#clock = clock;
  }

  async authenticate(
    headers: Headers,
    role: Role,
    scope: Scope = role === "user" ? "generate" : "admin",
  ): Promise<Caller> {
    const caller = this.#directory.keysRequired ? this.#byKey(headers) : this.#local(headers);
    if (ROLES.indexOf(caller.role) < ROLES.indexOf(role)) {
      throw new ServingError("FORBIDDEN", `this asks for a key of role ${role}; this key's is ${caller.role}`);
    }
    const scopes = caller.scopes;
    if (scopes !== undefined && !scopes.has(scope)) {
      throw new ServingError(
        "FORBIDDEN",
        `this asks for a key of scope ${scope}; this key has ${[...scopes].join(", ")}`,
      );
    }
    return caller;
  }

  /** Why a caller that was let in has no right to be here any more; undefined while it has. */
  lost(caller: Caller): ServingError | undefined {
    const { keyId, keyHash } = caller;
    if (keyId === undefined || keyHash === undefined) return undefined;
    const known = this.#directory.key(keyId);
    if (known === undefined || this.#secretState(known.record, keyHash) === "unknown") {
      return new ServingError("UNAUTHENTICATED", `the key atk_${keyId} was revoked while the request ran`);
    }
    const state = this.#secretState(known.record, keyHash);
    if (state === "good") return undefined;
    return new ServingError("UNAUTHENTICATED", `the key atk_${keyId} expired while the request ran`);
  }

  /**
   * A page of anybody's can have its name resolve to 127.0.0.1 and then speak to us as to its own server (DNS rebinding);
   * what the browser then says of the host is that name. Who comes by another than this machine's administers nothing.
   */
  #local({ host }: Headers): Caller {
    const admin = this.#directory.anonymousAdmin && (host === undefined || LOCAL_HOST.test(String(host)));
    return admin ? LOCAL_CALLER : { ...LOCAL_CALLER, role: "user" };
  }

  #byKey(headers: Headers): Caller {
    const text = readCredential(headers);
    if (text === undefined) {
      throw new ServingError(
        "UNAUTHENTICATED",
        "there is no key; send it as authorization: Bearer KEY or x-api-key: KEY",
      );
    }
    const key = readApiKey(text);
    if (key === undefined) {
      throw new ServingError("UNAUTHENTICATED", "what was sent is not a key of this service: those begin with atk_");
    }
    const known = this.#directory.key(key.id);
    const hash = hashApiKey(key);
    const state = known === undefined ? "unknown" : this.#secretState(known.record, hash);
    if (known === undefined && !this.#directory.complete) {
      const message = "keys could not be read yet from where they are kept, so this one is not known";
      throw new ServingError("OVERLOADED", message, { retryAfterMs: STORE_RETRY_MS });
    }
    // The same words for an unknown id and a wrong secret, so that nobody learns which ids there are.
    if (known === undefined || state === "unknown") {
      throw new ServingError("UNAUTHENTICATED", "the key is unknown or was revoked");
    }
    if (state === "expired") throw new ServingError("UNAUTHENTICATED", `the key atk_${key.id} has expired`);
    this.#directory.noteUsed(key.id);
    return this.#callerOf(known, hash);
  }

  #secretState(record: KeyRecord, hash: string): "good" | "expired" | "unknown" {
    const nowMs = this.#clock.nowMs();
    const current = sameHash(record.hash, hash);
    const previous = record.previous !== undefined && sameHash(record.previous.hash, hash);
    if (!current && !previous) return "unknown";
    const expired = record.expires_at !== null && Date.parse(record.expires_at) <= nowMs;
    const replaced = !current && Date.parse(record.previous!.until) <= nowMs;
    return expired || replaced ? "expired" : "good";
  }

  #callerOf({ record }: KnownKey, hash: string): Caller {
    const tenant = this.#directory.tenant(record.tenant);
    return {
      tenant: record.tenant,
      keyId: record.id,
      keyHash: hash,
      role: record.role,
      scopes: new Set(record.scopes),
      priority: record.priority,
      weight: tenant.weight ?? undefined,
      models: both(record.models, tenant.models),
      adapters: both(record.adapters, tenant.adapters),
    };
  }
}

const LOCAL_HOST = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?$/i;

/** What both lists allow; null is all. */
function both(a: readonly string[] | null, b: readonly string[] | null): ReadonlySet<string> | undefined {
  if (a === null || b === null) return a === b ? undefined : new Set(a ?? b);
  return new Set(a.filter((name) => b.includes(name)));
}
