import { ServingError } from "@atelier/core";
import type { FastifyInstance } from "fastify";
import { HttpRefusal } from "./error-reply.ts";
import { showValue } from "./validation.ts";

/** 404 for a path that is not there; 405, with the methods that are, for one that is. Call before adding routes. */
export function refuseUnknownRoutes(app: FastifyInstance): void {
  const routes = new Map<string, { readonly pattern: RegExp; readonly methods: Set<string> }>();
  app.addHook("onRoute", ({ url, method }) => {
    const route = routes.get(url) ?? { pattern: patternOf(url), methods: new Set<string>() };
    for (const name of [method].flat()) route.methods.add(name);
    routes.set(url, route);
  });
  app.setNotFoundHandler(({ url, method }) => {
    const path = url.split("?")[0]!;
    const methods = [...routes.values()].find(({ pattern }) => pattern.test(path))?.methods;
    if (methods === undefined)
      throw new ServingError("NOT_FOUND", `there is no route ${showValue(path)}; /openapi.json lists them`);
    const allow = [...methods].join(", ");
    throw new HttpRefusal(405, `${method} is not a method of ${path}; it has ${allow}`, { headers: { allow } });
  });
}

/** Of a route such as /v1/admin/keys/:id or /v1/jobs/*. */
function patternOf(url: string): RegExp {
  const parts = url
    .split("/")
    .map((part) =>
      part === "*" ? ".*" : part.startsWith(":") ? "[^/]+" : part.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&"),
    );
  return new RegExp(`^${parts.join("/")}$`);
}
