import { ServingError } from "@atelier/core";
import type { FastifyInstance } from "fastify";
import { HttpRefusal } from "./error-reply.ts";
import { showValue } from "./validation.ts";

/** 404 for a path that is not there; 405, with the methods that are, for one that is. Call before adding routes. */
export function refuseUnknownRoutes(app: FastifyInstance): void {
  const methodsByPath = new Map<string, Set<string>>();
  app.addHook("onRoute", ({ url, method }) => {
    const methods = methodsByPath.get(url) ?? new Set();
    for (const name of [method].flat()) methods.add(name);
    methodsByPath.set(url, methods);
  });
  app.setNotFoundHandler(({ url, method }) => {
    const path = url.split("?")[0]!;
    const methods = methodsByPath.get(path);
    if (methods === undefined)
      throw new ServingError("NOT_FOUND", `there is no route ${showValue(path)}; /openapi.json lists them`);
    const allow = [...methods].join(", ");
    throw new HttpRefusal(405, `${method} is not a method of ${path}; it has ${allow}`, { headers: { allow } });
  });
}
