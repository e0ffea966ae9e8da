import { readFileSync } from "node:fs";
import { Agent, request } from "node:https";
import type { Json, Plane } from "./plane.ts";

/** Calls of the Kubernetes API over kept connections: quicker than a kubectl for each. */
export class KubeApi {
  readonly #url: string;
  readonly #token: string;
  readonly #agent: Agent;

  constructor({ url, token, ca }: Pick<Plane, "url" | "token" | "ca">) {
    this.#url = url;
    this.#token = token;
    this.#agent = new Agent({ keepAlive: true, ca: readFileSync(ca) });
  }

  /** @throws Error with the API's message where it refuses; `{ status: 404 }` and the like are in its cause */
  call(method: string, path: string, body?: object, contentType = "application/json"): Promise<Json> {
    return new Promise((resolve, reject) => {
      const headers: Record<string, string> = { authorization: `Bearer ${this.#token}`, accept: "application/json" };
      const sent = body === undefined ? "" : JSON.stringify(body);
      // A DELETE's body has no length of its own accord, and would be taken for the next request.
      if (body !== undefined)
        Object.assign(headers, { "content-type": contentType, "content-length": String(Buffer.byteLength(sent)) });
      const asking = request(`${this.#url}${path}`, { method, headers, agent: this.#agent }, (response) => {
        let text = "";
        response.setEncoding("utf8").on("data", (chunk: string) => {
          text += chunk;
        });
        response.on("end", () => {
          const status = response.statusCode!;
          if (status < 300) return resolve(JSON.parse(text));
          reject(new Error(`${method} ${path}: ${status} ${text.slice(0, 500)}`, { cause: { status } }));
        });
      });
      asking.on("error", reject);
      asking.end(sent);
    });
  }

  patch(path: string, body: object): Promise<Json> {
    return this.call("PATCH", path, body, "application/merge-patch+json");
  }

  close(): void {
    this.#agent.destroy();
  }
}

export function isGone(error: unknown): boolean {
  const { status } = ((error as Error).cause ?? {}) as { status?: number };
  return status === 404 || status === 409 || status === 422;
}
