import { addLogFields } from "@atelier/telemetry";
import type { FastifyInstance } from "fastify";
import type { Caller, Role } from "../caller.ts";
import type { Scope } from "../tenants/records.ts";

/** Finds out who asks. */
export interface Authenticator {
  /**
   * @param role what the route asks for.
   * @param scope the part of the API that the route belongs to; where it says nothing, "generate", or "admin" for roles above user.
   * @throws ServingError UNAUTHENTICATED or FORBIDDEN.
   */
  authenticate(
    headers: Readonly<Record<string, string | string[] | undefined>>,
    role: Role,
    scope?: Scope,
  ): Promise<Caller>;
}

declare module "fastify" {
  interface FastifyRequest {
    /** Who asks; on routes with `access: "public"` it is null. */
    caller: Caller;
  }
  interface FastifyContextConfig {
    /** The least role that the route asks for; "user" where it says nothing. */
    access?: Role | "public";
    /** The part of the API that it belongs to, which a key must be for: see Authenticator. */
    scope?: Scope;
  }
}

/** Every route is behind the authenticator, but those that say `config: { access: "public" }`. Before the body is read. */
export function authenticateAll(app: FastifyInstance, authenticator: Authenticator): void {
  app.decorateRequest("caller", null as unknown as Caller);
  app.addHook("onRequest", async (request) => {
    const { access = "user", scope } = request.routeOptions.config;
    if (access === "public") return;
    request.caller = await authenticator.authenticate(request.headers, access, scope);
    addLogFields({ tenant: request.caller.tenant });
  });
}
