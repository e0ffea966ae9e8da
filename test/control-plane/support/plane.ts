import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect } from "vitest";
import {
  type ControlPlane,
  type ControlPlaneOptions,
  startControlPlane,
} from "../../../scripts/control-plane/control-plane.ts";
import { helm } from "../../../scripts/control-plane/programs.ts";
import { runProgram } from "../../../scripts/services/run-program.ts";

export const CHART = join(import.meta.dirname, "../../../helm/atelier");

// biome-ignore lint/suspicious/noExplicitAny: objects of the Kubernetes API, as they come
export type Json = any;

/** A control plane with helm beside it, and answers as JSON. */
export class Plane {
  readonly #plane: ControlPlane;
  readonly #helm: string;
  readonly folder = mkdtempSync(join(tmpdir(), "atelier-chart-"));

  private constructor(plane: ControlPlane, helmPath: string) {
    this.#plane = plane;
    this.#helm = helmPath;
  }

  static async start(options: ControlPlaneOptions): Promise<Plane> {
    return new Plane(await startControlPlane(options), (await helm()).path);
  }

  get url(): string {
    return this.#plane.url;
  }

  get token(): string {
    return this.#plane.token;
  }

  get ca(): string {
    return this.#plane.ca;
  }

  get kubeconfig(): string {
    return this.#plane.kubeconfig;
  }

  /** What kubectl printed. @throws where it fails, with what it said */
  async kubectl(args: readonly string[], input?: string | object): Promise<string> {
    const { code, stdout, stderr } = await this.try(args, input);
    if (code !== 0) throw new Error(`kubectl ${args.join(" ")}: ${stderr || stdout}`);
    return stdout;
  }

  try(args: readonly string[], input?: string | object) {
    return this.#plane.kubectl(args, typeof input === "object" ? JSON.stringify(input) : input);
  }

  /** `kubectl get`, as JSON. */
  async get(...args: readonly string[]): Promise<Json> {
    return JSON.parse(await this.kubectl(["get", ...args, "-o", "json"]));
  }

  /** Items of a list. */
  async list(...args: readonly string[]): Promise<Json[]> {
    return (await this.get(...args)).items;
  }

  helm(...args: readonly string[]) {
    const home = { HELM_CACHE_HOME: this.folder, HELM_CONFIG_HOME: this.folder, HELM_DATA_HOME: this.folder };
    return runProgram(this.#helm, args, { env: { KUBECONFIG: this.#plane.kubeconfig, ...home } });
  }

  /** @throws where helm fails, with what it said */
  async helmed(...args: readonly string[]): Promise<string> {
    const { code, stdout, stderr } = await this.helm(...args);
    if (code !== 0) throw new Error(`helm ${args.join(" ")}: ${stderr || stdout}`);
    return stdout;
  }

  /** A file of values of this test. */
  values(values: object): string {
    const file = join(this.folder, `values-${Math.random().toString(36).slice(2)}.json`);
    writeFileSync(file, JSON.stringify(values));
    return file;
  }

  stop(): Promise<void> {
    return this.#plane.stop();
  }
}

/** Asks until `holds`, and fails with what it last said. */
export async function until<Value>(
  ask: () => Promise<Value> | Value,
  holds: (value: Value) => boolean,
  { withinMs = 30_000, everyMs = 200, what = "it comes about" } = {},
): Promise<Value> {
  const endMs = Date.now() + withinMs;
  for (;;) {
    const value = await ask();
    if (holds(value)) return value;
    if (Date.now() > endMs) {
      expect.fail(`${what} within ${withinMs / 1000} s; the last answer was ${JSON.stringify(value).slice(0, 2000)}`);
    }
    await new Promise((resolve) => setTimeout(resolve, everyMs));
  }
}
