import { fileURLToPath } from "node:url";
import { LoopbackKubelet } from "./loopback-kubelet.ts";
import { CHART, type Plane, until } from "./plane.ts";
import { ServiceProxy } from "./service-proxy.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const node = process.execPath;

/** What the images run, from this checkout. */
export const IMAGES = {
  "atelier-gateway": [node, `${root}services/gateway/src/main.ts`],
  "atelier-worker": [node, `${root}services/worker/src/main.ts`],
} as const satisfies Record<string, readonly [string, ...string[]]>;

/** Gateways and simulated workers that ask for GPUs, with nothing beside them. */
export const FLEET_VALUES = {
  gateway: { replicas: 2, anonymous: true, config: { ATELIER_CHECKPOINT_EVERY_STEPS: 5 } },
  jobs: { enabled: false },
  redis: { enabled: false },
  podCosts: { enabled: false },
  worker: {
    device: "simulated",
    gpu: { enabled: true },
    config: { ATELIER_SIMULATED_SPEED: 4 },
    drainSeconds: 20,
  },
};

export interface Fleet {
  readonly kubelet: LoopbackKubelet;
  /** The gateways' Service, as pods of the cluster reach it. */
  readonly gateways: ServiceProxy;
  stop(): Promise<void>;
}

/** Installs the chart and runs its pods as processes, until all are ready. Needs nodes of `pods: "none"`. */
export async function startFleet(
  plane: Plane,
  { release, nodes, values, ready }: { release: string; nodes: readonly string[]; values: object; ready: number },
): Promise<Fleet> {
  const kubelet = await LoopbackKubelet.start({
    ...{ plane, nodes, images: IMAGES },
    // What an image has in it, and a folder that a pod has: this machine's.
    env: { ATELIER_MODELS: `${root}deploy/models/atelier-tiny`, ATELIER_STATE_DIR: "", OTEL_SDK_DISABLED: "true" },
  });
  const name = `${release}-atelier`;
  await plane.helmed("install", release, CHART, "--values", plane.values(values));
  await until(
    () => kubelet.pods.map((pod) => ({ pod: pod.name, ready: pod.ready, said: pod.output.slice(-500) })),
    (pods) => pods.length >= ready && pods.every((pod) => pod.ready),
    { withinMs: 90_000, what: `${ready} pods are ready` },
  ).catch(async (error: unknown) => {
    await kubelet.stop();
    throw error;
  });
  const gateways = await ServiceProxy.start(plane, { namespace: "default", service: `${name}-gateway`, port: 8080 });
  await until(
    () => gateways.ready.length,
    (count) => count > 0,
    { what: "the gateways' service has an endpoint" },
  );
  return {
    kubelet,
    gateways,
    stop: async () => {
      await gateways.stop();
      await kubelet.stop();
    },
  };
}
