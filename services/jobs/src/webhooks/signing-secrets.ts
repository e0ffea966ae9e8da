import { randomBytes } from "node:crypto";
import { type Clock, ServingError } from "@atelier/core";
import type { Records } from "@atelier/job-queue";
import { Webhook } from "standardwebhooks";

/** What a tenant's receivers verify calls with. */
export interface SigningSecret {
  /** "whsec_" and 32 bytes in base64. */
  readonly secret: string;
  readonly createdAtMs: number;
  /** The one before, which signs beside it until then. */
  readonly previous: { readonly secret: string; readonly untilMs: number } | null;
}

/** Secrets of tenants, kept among the records: whoever signs has to have them in clear. */
export class SigningSecrets {
  readonly #records: Records;
  readonly #clock: Clock;

  constructor({ records, clock }: { records: Records; clock: Clock }) {
    this.#records = records;
    this.#clock = clock;
  }

  /** Made when it is first asked for. */
  async of(tenant: string): Promise<SigningSecret> {
    const kept = await this.#records.get(keyOf(tenant));
    if (kept !== undefined) return JSON.parse(kept.value) as SigningSecret;
    const made: SigningSecret = { secret: newSecret(), createdAtMs: this.#clock.nowMs(), previous: null };
    try {
      await this.#records.put(keyOf(tenant), JSON.stringify(made), 0);
      return made;
    } catch (error) {
      if (!(error instanceof ServingError) || error.code !== "CONFLICT") throw error;
      return this.of(tenant); // somebody else has made it meanwhile
    }
  }

  /** A new one; the one before signs beside it for `graceMs`. @throws ServingError CONFLICT where two rotate at once. */
  async rotate(tenant: string, { graceMs }: { readonly graceMs: number }): Promise<SigningSecret> {
    const kept = await this.#records.get(keyOf(tenant));
    const before = kept === undefined ? undefined : (JSON.parse(kept.value) as SigningSecret);
    const nowMs = this.#clock.nowMs();
    const previous = before === undefined || graceMs === 0 ? null : { secret: before.secret, untilMs: nowMs + graceMs };
    const rotated: SigningSecret = { secret: newSecret(), createdAtMs: nowMs, previous };
    await this.#records.put(keyOf(tenant), JSON.stringify(rotated), kept?.revision ?? 0);
    return rotated;
  }

  /** The headers that say of a call what it is and that it is ours. Source: the Standard Webhooks specification 1.0. */
  async headers(tenant: string, { id, body }: { readonly id: string; readonly body: string }) {
    const { secret, previous } = await this.of(tenant);
    const nowMs = this.#clock.nowMs();
    const good = previous !== null && previous.untilMs > nowMs ? [secret, previous.secret] : [secret];
    return {
      "webhook-id": id,
      "webhook-timestamp": String(Math.floor(nowMs / 1_000)),
      "webhook-signature": good.map((one) => new Webhook(one).sign(id, new Date(nowMs), body)).join(" "),
    };
  }
}

const newSecret = () => `whsec_${randomBytes(32).toString("base64")}`;

const keyOf = (tenant: string) => `webhooks.secrets.${Buffer.from(tenant).toString("base64url")}`;
